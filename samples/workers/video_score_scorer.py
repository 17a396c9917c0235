"""VideoScore by Mantis (arXiv 2406.15252); for a worker with a GPU. Not run by its author here.

VIDEO_SCORE_QUERY is a text file with the query of the model's card, in which {text_prompt} stands for the prompt.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

import numpy as np

_STATE: dict[str, Any] = {}
_REPOSITORY = "TIGER-Lab/VideoScore"
_FRAMES = 16  # at equal distances
_PARTS = ("visual", "temporal", "dynamic", "alignment", "factual")


def load(random_weights: bool) -> None:
    """Read the checkpoint; there is no small version of this model."""
    if random_weights:
        raise SystemExit("video-score has no small random version; start it without --random-weights")
    torch = importlib.import_module("torch")
    network = importlib.import_module("mantis.models.idefics2").Idefics2ForSequenceClassification
    processor = importlib.import_module("transformers").AutoProcessor
    _STATE["query"] = Path(os.environ["VIDEO_SCORE_QUERY"]).read_text(encoding="utf-8")
    _STATE["processor"] = processor.from_pretrained(_REPOSITORY, torch_dtype=torch.bfloat16)
    _STATE["model"] = network.from_pretrained(_REPOSITORY, torch_dtype=torch.bfloat16).eval().to("cuda")


def score(media: np.ndarray, prompts: list[str]) -> dict[str, list[float]]:
    """The mean of five scores of about 1 to 4, and each; uint8 [N, F, 3, H, W]."""
    if media.ndim != 5:
        raise ValueError(f"media of shape {media.shape}: VideoScore scores clips [N, F, 3, H, W]")
    image = importlib.import_module("PIL.Image")
    torch = importlib.import_module("torch")
    rows = []
    for clip, prompt in zip(media, prompts, strict=True):
        chosen = np.linspace(0, len(clip) - 1, min(_FRAMES, len(clip))).round().astype(int)
        frames = [image.fromarray(clip[at].transpose(1, 2, 0)) for at in chosen]
        query = _STATE["query"].replace("{text_prompt}", prompt)
        query += "<image> " * (len(frames) - query.count("<image>"))
        inputs = _STATE["processor"](text=query, images=frames, return_tensors="pt").to("cuda")
        with torch.no_grad():
            rows.append(_STATE["model"](**inputs).logits[0].float().tolist())
    parts = {part: [row[index] for row in rows] for index, part in enumerate(_PARTS)}
    return {"scores": [sum(row) / len(row) for row in rows], **parts}
