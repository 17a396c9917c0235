"""How small, or how large, a picture is as a JPEG file: a reward that needs no weights and that anyone can check."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from difalign.core.types import Metadata, RewardOutput
from difalign.reward_models.media_check import check_media, refuse_gradient
from difalign.reward_models.scorer_input import picture_bytes


@final
@dataclass(frozen=True, slots=True)
class Compressibility:
    """``sign`` times the size of each picture as JPEG, in thousands of bytes (DDPO, arXiv 2305.13301, section 4).

    Pixels are rounded to 8 bits, as in the released code.
    """

    quality: int = 95  # DDPO, released rewards
    sign: int = -1  # -1 rewards pictures that compress well, 1 those that do not
    name: str = "compressibility"
    differentiable: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.quality <= 95:
            raise ValueError(f"quality = {self.quality}: must lie in [1, 95], the range in which it changes the size")
        if self.sign not in (-1, 1):
            raise ValueError(f"sign = {self.sign}: must be -1 for small files or 1 for large ones")

    def score(
        self, media: Tensor, prompts: Sequence[str], *, metadata: Metadata | None = None, sigma: float | None = None
    ) -> RewardOutput:
        """Score pixels in [0, 1], [N, 3, H, W]; what the prompts say does not matter.

        Raises:
            ValueError: for media of another layout, or another number of prompts.
        """
        check_media(media, prompts, reader=self.name)
        refuse_gradient(media, reader=self.name)
        sizes = [self._bytes(picture) for picture in picture_bytes(media)]
        return RewardOutput(torch.tensor(sizes, dtype=torch.float32, device=media.device) * self.sign / 1000)

    def _bytes(self, picture: Any) -> int:
        from PIL import Image

        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, format="JPEG", quality=self.quality)
        return buffer.tell()
