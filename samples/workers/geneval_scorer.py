"""GenEval's own detector, mmdet's Mask2Former, with the rules of difalign; for a worker's environment. Not run here.

The rules (arXiv 2310.11513) are two files of difalign that lie beside this one. GENEVAL_DETECTOR is the checkpoint
mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco of mmdet's model zoo.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

import numpy as np

_STATE: dict[str, Any] = {}
_CONFIG = ".mim/configs/mask2former/mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco.py"
_RENAMED = {"mouse": "computer mouse", "remote": "tv remote", "keyboard": "computer keyboard"}  # GenEval's words
_TEMPLATES = ("a photo of a {colour} {label}", "a photo of a {colour}-colored {label}", "a photo of a {colour} object")
_GREY = 153  # "#999", around what is cut out


def load(random_weights: bool) -> None:
    """Read the detector, and the CLIP that names colours."""
    if random_weights:
        raise SystemExit("geneval has no small random version; start it without --random-weights")
    torch = importlib.import_module("torch")
    clip = importlib.import_module("open_clip")
    mmdet: Any = importlib.import_module("mmdet")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = str(Path(mmdet.__file__).parent / _CONFIG)
    apis = importlib.import_module("mmdet.apis")
    _STATE["detector"] = apis.init_detector(config, os.environ["GENEVAL_DETECTOR"], device=device)
    _STATE["detect"] = apis.inference_detector
    model, _, preprocess = clip.create_model_and_transforms("ViT-L-14", pretrained="openai", device=device)
    _STATE.update(clip=model.eval(), preprocess=preprocess, tokenize=clip.get_tokenizer("ViT-L-14"), device=device)


def score(media: np.ndarray, prompts: list[str], metadata: list[dict]) -> dict[str, list[float]]:
    """The graded score that Flow-GRPO trains on, and GenEval's strict one; uint8 [N, 3, H, W]."""
    rules = importlib.import_module("difalign.reward_models.geneval")
    clauses = importlib.import_module("difalign.reward_models.geneval_clauses")
    verdicts = []
    for picture, prompt, said in zip(media, prompts, metadata, strict=True):
        task = clauses.read_task(prompt, said)
        pixels = picture.transpose(1, 2, 0)
        objects = rules.keep_objects(_found(rules, pixels), task.tag, rule=rules.KeepingRule())
        verdicts.append(rules.judge(task, objects, _colours(pixels, clauses.COLOURS)))
    parts = ("partial", "strict", "official")
    named = {part: [float(getattr(verdict, part)) for verdict in verdicts] for part in parts}
    return {"scores": named["partial"], **named}


def _found(rules: Any, pixels: np.ndarray) -> list:
    boxes, masks = _STATE["detect"](_STATE["detector"], np.ascontiguousarray(pixels[:, :, ::-1]))  # blue first
    found = []
    for name, of_class, drawn in zip(_STATE["detector"].CLASSES, boxes, masks, strict=True):
        for box, mask in zip(of_class, drawn, strict=True):
            label = _RENAMED.get(name, name)
            found.append(rules.FoundObject(label, tuple(map(float, box[:4])), float(box[4]), np.asarray(mask)))
    return found


def _colours(pixels: np.ndarray, colours: tuple) -> Any:
    """A function that names the colour of each object of a class by CLIP."""
    torch = importlib.import_module("torch")
    image = importlib.import_module("PIL.Image")

    def name(label: str, found: list) -> list[str]:
        sentences = [line.format(colour=colour, label=label) for colour in colours for line in _TEMPLATES]
        with torch.no_grad():
            words = _STATE["clip"].encode_text(_STATE["tokenize"](sentences).to(_STATE["device"]))
            words = torch.nn.functional.normalize(words, dim=-1).view(len(colours), len(_TEMPLATES), -1).mean(dim=1)
            words = torch.nn.functional.normalize(words, dim=-1)
            named = []
            for thing in found:
                left, top, right, bottom = (max(round(side), 0) for side in thing.box)
                shown = np.where(thing.mask[:, :, None], pixels, _GREY).astype(np.uint8)
                cut = image.fromarray(shown[top : max(bottom, top + 1), left : max(right, left + 1)])
                seen = _STATE["clip"].encode_image(_STATE["preprocess"](cut)[None].to(_STATE["device"]))
                named.append(colours[int((seen @ words.T).argmax())])
        return named

    return name
