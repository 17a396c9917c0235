"""Pictures of text, drawn with the font that Pillow carries."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor


def lettered(*texts: str, size: int = 40, width: int = 320, height: int = 160, ink: str = "black") -> Tensor:
    """A picture a text, centred on white; [N, 3, H, W] in [0, 1]."""
    pictures: list[Tensor] = []
    for text in texts:
        picture = Image.new("RGB", (width, height), "white")
        middle = (width // 2, height // 2)
        font = ImageFont.load_default(size=size)
        ImageDraw.Draw(picture).multiline_text(middle, text, font=font, anchor="mm", fill=ink)
        pictures.append(torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255)
    return torch.stack(pictures)
