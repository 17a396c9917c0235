"""Objects, with boxes and outlines, by a Mask2Former of COCO's classes as transformers reads it.

Cheng et al. 2022, arXiv 2112.01527, section 4; preparation and reading as in its released configuration for instances.
torchvision is not needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, final

import torch
import torch.nn.functional as F
from torch import Tensor

from difalign.reward_models.checkpoints import check_model_type, load_pretrained
from difalign.reward_models.geneval import FoundObject
from difalign.reward_models.geneval_clauses import CLASSES
from difalign.reward_models.networks import frozen, move
from difalign.reward_models.preprocessing import eight_bit

if TYPE_CHECKING:
    from transformers import Mask2FormerForUniversalSegmentation

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's
_DIVISOR = 32  # the backbone halves five times
_MOST = 100  # objects a picture, over all classes; the released configuration
# Other words for COCO's classes, in the configurations of published weights and in COCO itself.
_SYNONYMS: Mapping[str, str] = {
    "motorbike": "motorcycle",
    "aeroplane": "airplane",
    "sofa": "couch",
    "pottedplant": "potted plant",
    "diningtable": "dining table",
    "tvmonitor": "tv",
    "mouse": "computer mouse",
    "remote": "tv remote",
    "keyboard": "computer keyboard",
    "hair dryer": "hair drier",
}


@final
class Mask2FormerDetector:
    """Finds objects of the eighty classes.

    Args:
        model: frozen here.
        least: objects that score less are not returned; nothing else changes.
        shorter, longer: pixels; a picture is enlarged until its shorter side or its longer side reaches them.
    """

    def __init__(
        self, model: Mask2FormerForUniversalSegmentation, *, least: float = 0.3, shorter: int = 800, longer: int = 1333
    ) -> None:
        self.model = frozen(model)
        said: Any = model.config.id2label  # annotated as perhaps nothing
        self.labels = class_names(said)
        self._least, self._shorter, self._longer = least, shorter, longer

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        least: float = 0.3,
        shorter: int = 800,
        longer: int = 1333,
        device: str | torch.device = "cpu",
        revision: str | None = None,
    ) -> Self:
        """Load a folder that ``save_pretrained`` wrote, or a hub repository, in float32.

        Raises:
            ValueError: if it holds another model, of other classes, or not all weights.
        """
        from transformers import Mask2FormerForUniversalSegmentation

        check_model_type(source, "mask2former", class_name="Mask2FormerForUniversalSegmentation")
        model = load_pretrained(Mask2FormerForUniversalSegmentation, source, dtype=torch.float32, revision=revision)
        return cls(model.to(device), least=least, shorter=shorter, longer=longer)

    def to(self, device: str | torch.device) -> None:
        """Move the weights."""
        move(self.model, device)

    @torch.no_grad()
    def __call__(self, picture: Tensor) -> list[FoundObject]:
        """The objects in one picture [3, H, W] in [0, 1], the surest first."""
        height, width = picture.shape[-2:]
        pixels, inner = self._prepared(picture)
        output: Any = self.model(pixel_values=pixels, pixel_mask=torch.ones_like(pixels[:, 0], dtype=torch.long))
        probabilities = output.class_queries_logits[0].float().softmax(dim=-1)[:, :-1]  # [Q, C]; the last is nothing
        order = probabilities.flatten().topk(min(_MOST, probabilities.numel()))
        sure = order.values > self._least  # an outline can only take from a score
        queries = order.indices[sure] // probabilities.shape[1]
        labels = order.indices[sure] % probabilities.shape[1]
        found: list[FoundObject] = []
        for query, label, probability in zip(queries, labels.tolist(), order.values[sure], strict=True):
            outline = output.masks_queries_logits[0, query].float()[None, None]
            outline = _resized(outline, tuple(pixels.shape[-2:]))[..., : inner[0], : inner[1]]
            drawn = _drawn(_resized(outline, (height, width))[0, 0], self.labels[label], float(probability))
            if drawn is not None and drawn.score > self._least:
                found.append(drawn)
        return sorted(found, key=lambda thing: -thing.score)

    def _prepared(self, picture: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Enlarged, normalised and filled up with zeros, [1, 3, h, w]; with height and width before filling."""
        height, width = picture.shape[-2:]
        scale = min(self._shorter / min(height, width), self._longer / max(height, width))
        inner = (max(round(height * scale), 1), max(round(width * scale), 1))
        device = next(self.model.parameters()).device
        mean, std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (_MEAN, _STD))
        rounded = eight_bit(picture[None]).to(device).float() / 255  # detectors are trained on 8 bits
        pixels = (_resized(rounded, inner) - mean) / std
        fill = [(-side) % _DIVISOR for side in inner]
        return F.pad(pixels, (0, fill[1], 0, fill[0])), inner


def class_names(id2label: Mapping[int, str]) -> tuple[str, ...]:
    """GenEval's words for the classes of a network, in its order.

    Raises:
        ValueError: if a class has no word there, or one of the eighty is missing.
    """
    said = [id2label[index].strip().lower().replace("_", " ") for index in range(len(id2label))]
    if len(said) == len(CLASSES) and all(name == f"label {index}" for index, name in enumerate(said)):
        return CLASSES  # nothing is said, and COCO's order is everybody's
    names = tuple(_SYNONYMS.get(name, name) for name in said)
    strange = sorted(set(names) ^ set(CLASSES))
    if strange or len(names) != len(CLASSES):
        raise ValueError(
            f"the detector knows {len(names)} classes, which are not COCO's eighty ({', '.join(strange[:5])}); give "
            "weights for COCO's instances, such as facebook/mask2former-swin-small-coco-instance"
        )
    return names


def _drawn(outline: Tensor, label: str, probability: float) -> FoundObject | None:
    """The object of an outline [H, W] of logits, None if it is empty; it scores by class and outline together."""
    mask = outline > 0
    rows, columns = mask.any(dim=1).nonzero(), mask.any(dim=0).nonzero()
    if not len(rows):
        return None
    score = probability * float(outline.sigmoid()[mask].mean())
    box = (float(columns[0]), float(rows[0]), float(columns[-1]) + 1, float(rows[-1]) + 1)
    return FoundObject(label, box, score, mask.cpu())


def _resized(images: Tensor, size: Sequence[int]) -> Tensor:
    shrinks = size[0] < images.shape[-2]
    return F.interpolate(images, size=tuple(size), mode="bilinear", align_corners=False, antialias=shrinks)
