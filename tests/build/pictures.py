"""Picture files for tests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from difalign.embedded.render import render
from difalign.embedded.scenes import draw_layout, parse_caption

CAPTIONS = ("a red circle", "two blue squares", "a green cross at the left")


def draw(caption: str, *, seed: int = 0) -> Image.Image:
    """A scene that shows its caption, 36 x 36."""
    scene = draw_layout(parse_caption(caption), np.random.default_rng(seed))
    return Image.fromarray(np.rint(255 * render([scene])[0]).astype(np.uint8).transpose(1, 2, 0))


def fill(folder: Path, captions: Mapping[str, str]) -> Path:
    """A folder with a picture of each caption under its name."""
    for number, (name, caption) in enumerate(captions.items()):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        draw(caption, seed=number).save(file)
    return folder
