"""HPSv3 by its own package (arXiv 2508.03789); for a worker's environment with a GPU. Not run by its author here."""

from __future__ import annotations

import importlib
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

_STATE: dict[str, Any] = {}
_CHUNK = 4  # pictures at once, of seven billion weights


def load(random_weights: bool) -> None:
    """Read the checkpoint; there is no small version of this model."""
    if random_weights:
        raise SystemExit("hpsv3 has no small random version; start it without --random-weights")
    _STATE["model"] = importlib.import_module("hpsv3").HPSv3RewardInferencer(device="cuda")


def score(media: np.ndarray, prompts: list[str]) -> dict[str, list[float]]:
    """The mean that the model gives, and its spread; uint8 [N, 3, H, W]."""
    image = importlib.import_module("PIL.Image")
    means: list[float] = []
    spreads: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        files = [str(Path(folder) / f"{row}.png") for row in range(len(media))]
        for file, picture in zip(files, media, strict=True):
            image.fromarray(picture.transpose(1, 2, 0)).save(file)
        for start in range(0, len(files), _CHUNK):
            rows = slice(start, start + _CHUNK)
            # By name: releases of the package differ in the order of these two.
            given = _STATE["model"].reward(image_paths=files[rows], prompts=prompts[rows])
            means += [float(row[0]) for row in given]
            spreads += [float(row[1]) for row in given]
    return {"scores": means, "sigma": spreads}
