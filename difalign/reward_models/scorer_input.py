"""What scorers make of what they are handed: one mapping a prompt, and 8-bit pictures where no gradient is needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from difalign.core.types import Metadata
from difalign.reward_models.preprocessing import eight_bit


def metadata_rows(prompts: Sequence[str], metadata: Metadata | None) -> Sequence[Mapping[str, object]]:
    """One mapping a prompt, empty where nothing is said.

    Raises:
        ValueError: if their number is another than that of the prompts.
    """
    if metadata is None:
        return [{}] * len(prompts)
    if len(metadata) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts but metadata of {len(metadata)}; give one mapping a prompt")
    return metadata


def picture_bytes(media: Tensor) -> Any:
    """Pixels [N, 3, H, W] in [0, 1] rounded to 8 bits: a numpy array [N, H, W, 3] of uint8."""
    return eight_bit(media).permute(0, 2, 3, 1).cpu().numpy()
