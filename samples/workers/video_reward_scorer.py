"""VideoReward by VideoAlign's own code (arXiv 2501.13918); for a worker with a GPU. Not run by its author here.

VIDEO_REWARD_CODE is a checkout of KwaiVGI/VideoAlign, VIDEO_REWARD_CHECKPOINT a folder of KwaiVGI/VideoReward.
"""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

_STATE: dict[str, Any] = {}
_PARTS = ("VQ", "MQ", "TA")  # visual quality, motion quality, alignment with the text
_FRAMES_PER_SECOND = 8  # of clips whose metadata have no fps


def load(random_weights: bool) -> None:
    """Read the checkpoint; there is no small version of this model."""
    if random_weights:
        raise SystemExit("video-reward has no small random version; start it without --random-weights")
    sys.path.insert(0, os.environ["VIDEO_REWARD_CODE"])
    torch = importlib.import_module("torch")
    inference = importlib.import_module("inference")
    _STATE["model"] = inference.VideoVLMRewardInference(
        os.environ["VIDEO_REWARD_CHECKPOINT"], device="cuda", dtype=torch.bfloat16
    )


def score(media: np.ndarray, prompts: list[str], metadata: list[dict]) -> dict[str, list[float]]:
    """The sum of three normalised scores, and each; uint8 [N, F, 3, H, W]."""
    if media.ndim != 5:
        raise ValueError(f"media of shape {media.shape}: VideoReward scores clips [N, F, 3, H, W]")
    imageio = importlib.import_module("imageio.v3")
    with tempfile.TemporaryDirectory() as folder:
        files = [str(Path(folder) / f"{row}.mp4") for row in range(len(media))]
        for file, clip, said in zip(files, media, metadata, strict=True):
            imageio.imwrite(file, clip.transpose(0, 2, 3, 1), fps=said.get("fps", _FRAMES_PER_SECOND))
        given = _STATE["model"].reward(files, prompts, use_norm=True)
    parts = {part: [float(row[part]) for row in given] for part in _PARTS}
    return {"scores": [sum(values) for values in zip(*parts.values(), strict=True)], **parts}
