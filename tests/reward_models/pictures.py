"""Pictures that scorers are tried on."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

GREY_LEVEL = 1 / 255


def eight_bit_pictures(number: int, height: int, width: int, *, seed: int = 0) -> Tensor:
    """Smooth random pictures with sharp edges, every pixel a whole number of grey levels, [N, 3, H, W] in [0, 1]."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(0, 255, size=(number, 3, -(-height // 6), -(-width // 6)))
    values = np.kron(coarse, np.ones((1, 1, 6, 6)))[..., :height, :width] + rng.normal(0, 6, (number, 3, height, width))
    return torch.from_numpy(np.clip(values, 0, 255).round() / 255).float()


def as_pillow(pixels: Tensor) -> list[Image.Image]:
    """The same as Pillow's pictures."""
    return [Image.fromarray((p.permute(1, 2, 0) * 255).round().byte().numpy()) for p in pixels]
