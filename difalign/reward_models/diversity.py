"""How much a picture differs from the others of its prompt: 1 minus the mean cosine between embeddings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self, final

import torch
import torch.nn.functional as F
from torch import Tensor

from difalign.core.types import Metadata, RewardOutput
from difalign.reward_models.checkpoints import check_model_type, load_pretrained, load_processor
from difalign.reward_models.clip import ClipReward
from difalign.reward_models.media_check import check_media
from difalign.reward_models.networks import check_micro_batch, frozen, in_micro_batches, move, named_dtype
from difalign.reward_models.preprocessing import ImageInput, check_mode, preprocess

if TYPE_CHECKING:
    from transformers import Dinov2Model


class ImageEncoder(Protocol):
    """What turns pictures into unit vectors."""

    def embed_images(self, media: Tensor) -> Tensor:
        """[N, 3, H, W] in [0, 1] to [N, D] float32, differentiably."""
        ...

    def to(self, device: str | torch.device) -> None:
        """Move all weights."""
        ...


@final
class DinoEncoder:
    """The class token of DINOv2 (arXiv 2304.07193), as a unit vector."""

    def __init__(
        self, model: Dinov2Model, wanted: ImageInput, *, preprocess: str = "auto", micro_batch: int = 16
    ) -> None:
        self.model = frozen(model)
        self.wanted = wanted
        self._mode = check_mode(preprocess)
        self._micro_batch = check_micro_batch(micro_batch)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        preprocess: str,
        micro_batch: int,
        dtype: str,
        device: str | torch.device,
        revision: str | None,
    ) -> Self:
        """Load what ``Dinov2Model`` and its image processor saved, or a hub repository.

        Raises:
            ValueError: if the folder is missing, holds another model or none, or its weights are incomplete.
        """
        from transformers import BitImageProcessor, Dinov2Model

        check_model_type(source, "dinov2", class_name="Dinov2Model")
        model = load_pretrained(Dinov2Model, source, dtype=named_dtype(dtype), revision=revision)
        wanted = ImageInput.of_processor(load_processor(BitImageProcessor, source, revision=revision))
        return cls(model.to(device), wanted, preprocess=preprocess, micro_batch=micro_batch)

    def to(self, device: str | torch.device) -> None:
        """Move the weights."""
        move(self.model, device)

    def embed_images(self, media: Tensor) -> Tensor:
        """Unit vectors of pictures [N, 3, H, W] in [0, 1], [N, D] float32; differentiable."""
        return F.normalize(in_micro_batches(self._embed, media, self._micro_batch), dim=-1)

    def _embed(self, media: Tensor) -> Tensor:
        pixels = preprocess(media.to(self.model.device), self.wanted, mode=self._mode).to(self.model.dtype)
        output: Any = self.model(pixel_values=pixels)
        return output.pooler_output


ENCODERS: Mapping[str, Callable[..., ImageEncoder]] = {
    "dinov2": DinoEncoder.from_pretrained,
    "clip": ClipReward.from_pretrained,
}


def distance_to_others(embeddings: Tensor, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """1 minus the mean cosine of each picture to the others of its prompt, and how many others there are.

    Args:
        embeddings: unit vectors, [N, D].
        prompts: N texts.

    Returns:
        Distances in [0, 2], [N], NaN where there is no other; numbers of others, [N].
    """
    number = {prompt: row for row, prompt in enumerate(dict.fromkeys(prompts))}
    group = torch.tensor([number[prompt] for prompt in prompts], device=embeddings.device)
    among = group[:, None] == group[None, :]
    among.fill_diagonal_(False)
    others = among.sum(dim=1)
    # The mean over others through their sum, so that a picture is never compared with itself.
    cosines = embeddings @ embeddings.T
    alone = others == 0
    mean = (cosines * among).sum(dim=1) / others.clamp(min=1)
    return torch.where(alone, torch.nan, 1 - mean), others


@final
class DiversityReward:
    """1 − the mean cosine to the other pictures of the same prompt in the call, in [0, 2].

    It is zero where all pictures of a prompt are alike. The mean over a prompt's pictures is 1 minus their mean
    pairwise cosine. A picture without others has no score: its row is not valid.
    """

    differentiable = True
    groupwise = True

    def __init__(self, encoder: ImageEncoder, *, name: str = "diversity") -> None:
        self.name = name
        self.encoder = encoder

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        encoder: str = "dinov2",
        preprocess: str = "auto",
        micro_batch: int = 16,
        dtype: str = "float32",
        device: str | torch.device = "cpu",
        revision: str | None = None,
        name: str = "diversity",
    ) -> Self:
        """Load the encoder from a folder or a hub repository.

        Args:
            source: a folder, or an id of the model hub.
            encoder: what it holds, a key of ``ENCODERS``.
            preprocess: a mode of ``preprocessing``.
            micro_batch: pictures a forward; memory only.
            dtype: in which the network computes; scores are float32 whatever it is.
            device: where it computes.
            revision: of a hub repository.
            name: of the reward.

        Raises:
            ValueError: if the folder is missing, holds another model or none, or its weights are incomplete.
        """
        if encoder not in ENCODERS:
            raise ValueError(f"encoder = {encoder!r}: use one of: {', '.join(ENCODERS)}")
        load = ENCODERS[encoder]
        return cls(
            load(source, preprocess=preprocess, micro_batch=micro_batch, dtype=dtype, device=device, revision=revision),
            name=name,
        )

    def to(self, device: str | torch.device) -> None:
        """Move the weights."""
        self.encoder.to(device)

    def score(
        self,
        media: Tensor,
        prompts: Sequence[str],
        *,
        metadata: Metadata | None = None,
        sigma: float | None = None,
    ) -> RewardOutput:
        """Score pixels in [0, 1], [N, 3, H, W], among those of the same prompt; ``metadata``, ``sigma`` are not used.

        Raises:
            ValueError: if the numbers differ, the media are no pictures, or ``exact`` is asked for a gradient.
        """
        check_media(media, prompts, reader=self.name)
        distance, others = distance_to_others(self.encoder.embed_images(media), prompts)
        distance, valid = distance.to(media.device), (others > 0).to(media.device)
        if bool(valid.all()):
            return RewardOutput(distance)
        lonely = (~valid).nonzero().flatten().tolist()
        reason = "the only picture of its prompt: there is none to differ from; sample more for each prompt"
        return RewardOutput(distance, valid=valid, errors=dict.fromkeys(lonely, reason))
