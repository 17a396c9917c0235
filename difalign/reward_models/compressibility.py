"""How small a picture is as a JPEG file: a reward that needs no weights and that anyone can check."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from difalign.core.types import Metadata, RewardOutput


@final
@dataclass(frozen=True, slots=True)
class Compressibility:
    """Minus the size of each picture as JPEG, in thousands of bytes (DDPO, arXiv 2305.13301, section 4).

    A negative weight rewards pictures that are hard to compress. Pixels are rounded to 8 bits, as in the released code.
    """

    quality: int = 95  # DDPO, released rewards
    name: str = "compressibility"
    differentiable: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.quality <= 95:
            raise ValueError(f"quality = {self.quality}: must lie in [1, 95], the range in which it changes the size")

    def score(
        self, media: Tensor, prompts: Sequence[str], *, metadata: Metadata | None = None, sigma: float | None = None
    ) -> RewardOutput:
        """Score pixels in [0, 1], [N, 3, H, W]; the prompts do not matter."""
        pixels = (media.detach() * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu()
        sizes = [self._bytes(picture) for picture in pixels]
        return RewardOutput(torch.tensor(sizes, dtype=torch.float32, device=media.device) / -1000)

    def _bytes(self, picture: Tensor) -> int:
        from PIL import Image

        buffer = io.BytesIO()
        Image.fromarray(picture.numpy()).save(buffer, format="JPEG", quality=self.quality)
        return buffer.tell()
