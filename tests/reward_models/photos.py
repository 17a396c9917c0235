"""The photographs that scikit-image carries."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def photo(name: str) -> Tensor:
    """One photograph, such as chelsea (a cat) or coffee; [1, 3, H, W] in [0, 1]."""
    spec = find_spec("skimage")
    assert spec is not None
    assert spec.origin is not None
    with Image.open(Path(spec.origin).parent / "data" / f"{name}.png") as picture:
        return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)[None].float() / 255
