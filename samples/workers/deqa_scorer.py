"""DeQA-Score by the code of its repository on the hub (arXiv 2501.11561); for a worker with a GPU. Not run here.

The repository's own Python code is run when the model is read: that is why it has a process of its own.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

_STATE: dict[str, Any] = {}
_REPOSITORY = "zhiyuanyou/DeQA-Score-Mix3"


def load(random_weights: bool) -> None:
    """Read the checkpoint; there is no small version of this model."""
    if random_weights:
        raise SystemExit("deqa has no small random version; start it without --random-weights")
    torch = importlib.import_module("torch")
    _STATE["model"] = importlib.import_module("transformers").AutoModelForCausalLM.from_pretrained(
        _REPOSITORY, trust_remote_code=True, attn_implementation="eager", torch_dtype=torch.float16, device_map="auto"
    )


def score(media: np.ndarray, _: list[str]) -> list[float]:
    """The quality of each picture, 1 to 5, whatever its prompt; uint8 [N, 3, H, W]."""
    image = importlib.import_module("PIL.Image")
    pictures = [image.fromarray(picture.transpose(1, 2, 0)) for picture in media]
    return [float(value) for value in _STATE["model"].score(pictures)]
