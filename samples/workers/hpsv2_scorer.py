"""HPSv2.1 by its own package's network, preprocessing and tokenizer, loaded once; for a worker's environment.

The package's ``score`` reads the checkpoint anew for every call. What it computes is repeated here line by line:
float16 under autocast on a GPU, float32 without one.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

_STATE: dict[str, Any] = {}
_VERSION = "v2.1"


def load(random_weights: bool) -> None:
    """Read the checkpoint, or make a small random model of the package's own classes."""
    torch = importlib.import_module("torch")
    clip = importlib.import_module("hpsv2.src.open_clip")
    _STATE["device"] = "cuda" if torch.cuda.is_available() else "cpu"
    if random_weights:
        torch.manual_seed(0)
        picture_side = clip.CLIPVisionCfg(layers=2, width=64, head_width=16, patch_size=32)
        text_side = clip.CLIPTextCfg(width=32, heads=2, layers=2)
        model = clip.CLIP(16, picture_side, text_side, output_dict=True)
    else:
        hub = importlib.import_module("huggingface_hub")
        versions = importlib.import_module("hpsv2.utils").hps_version_map
        model = clip.create_model("ViT-H-14", precision="fp32", device="cpu", output_dict=True)
        checkpoint = torch.load(hub.hf_hub_download("xswu/HPSv2", versions[_VERSION]), map_location="cpu")
        model.load_state_dict(checkpoint["state_dict"])
    _STATE["model"] = model.to(_STATE["device"]).eval()
    # What create_model_and_transforms makes for ViT-H-14.
    _STATE["preprocess"] = clip.image_transform(224, is_train=False, resize_longest_max=True)
    _STATE["tokenizer"] = clip.get_tokenizer("ViT-H-14")


def score(media: np.ndarray, prompts: list[str]) -> list[float]:
    """The cosine of picture and prompt, about 0.2 to 0.35; uint8 [N, 3, H, W]."""
    torch = importlib.import_module("torch")
    image = importlib.import_module("PIL.Image")
    device = _STATE["device"]
    values = []
    for picture, prompt in zip(media, prompts, strict=True):
        with torch.no_grad():
            pixels = _STATE["preprocess"](image.fromarray(picture.transpose(1, 2, 0))).unsqueeze(0).to(device)
            text = _STATE["tokenizer"]([prompt]).to(device)
            with torch.autocast(device, dtype=torch.float16, enabled=device == "cuda"):
                found = _STATE["model"](pixels, text)
                cosine = found["image_features"] @ found["text_features"].T
        values.append(float(cosine[0, 0]))
    return values
