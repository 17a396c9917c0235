"""How well an image fits its prompt by a CLIP model: a learned reward with a gradient to the pixels."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, cast, final, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from difalign.core.types import Metadata, RewardOutput
from difalign.reward_models.checkpoints import check_model_type, load_pretrained, load_processor, load_tokenizer
from difalign.reward_models.media_check import check_media
from difalign.reward_models.networks import check_micro_batch, frozen, in_micro_batches, in_training, move, named_dtype
from difalign.reward_models.preprocessing import ImageInput, check_mode, preprocess
from difalign.reward_models.text_cache import LengthLimit, TextCache

if TYPE_CHECKING:
    from transformers import CLIPModel, CLIPTokenizer

ScaleName = Literal["cosine", "logit", "clipscore"]
Scale = Callable[[Tensor, Tensor], Tensor]  # (cosine [N], exp(logit_scale) scalar) -> score [N]

SCALES: Mapping[str, Scale] = {
    "cosine": lambda cosine, _: cosine,
    "logit": lambda cosine, temperature: temperature * cosine,  # CLIP (arXiv 2103.00020), PickScore (arXiv 2305.01569)
    "clipscore": lambda cosine, _: 2.5 * cosine.clamp(min=0),  # CLIPScore (arXiv 2104.08718), equation 1
}


@final
class ClipReward:
    """The cosine between the embeddings of a picture and of its prompt, in the unit that ``scale`` names.

    ``cosine`` lies in [-1, 1]; ``logit`` multiplies it by the model's learned temperature, as CLIP does before its
    softmax and PickScore (arXiv 2305.01569) as its score; ``clipscore`` is 2.5 max(cosine, 0) (arXiv 2104.08718).
    The weights are frozen; the gradient goes to the pixels.
    """

    differentiable = True

    def __init__(
        self,
        model: CLIPModel,
        tokenizer: CLIPTokenizer,
        wanted: ImageInput,
        *,
        scale: str = "cosine",
        preprocess: str = "auto",
        micro_batch: int = 64,
        name: str = "clip",
    ) -> None:
        if scale not in SCALES:
            raise ValueError(f"scale = {scale!r}: use one of: {', '.join(get_args(ScaleName))}")
        self.name = name
        self.model = frozen(model)
        self.tokenizer = tokenizer
        self.wanted = wanted
        text_config: Any = model.config.text_config  # annotated as a mapping or none
        self._limit = LengthLimit(text_config.max_position_embeddings, reader=name)
        self._texts = TextCache(self._read)
        self._scale = SCALES[scale]
        self._mode = check_mode(preprocess)
        self._micro_batch = check_micro_batch(micro_batch)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        scale: str = "cosine",
        processor: str | None = None,
        preprocess: str = "auto",
        micro_batch: int = 64,
        dtype: str = "float32",
        device: str | torch.device = "cpu",
        revision: str | None = None,
        name: str = "clip",
    ) -> Self:
        """Load what ``CLIPModel.save_pretrained`` and ``CLIPProcessor.save_pretrained`` wrote, or a hub repository.

        Args:
            source: a folder, or an id of the model hub.
            scale: the unit of the score, a key of ``SCALES``.
            processor: the folder or repository with tokenizer and image processor, if that is another.
            preprocess: a mode of ``preprocessing``.
            micro_batch: pictures a forward; memory only.
            dtype: in which the network computes; scores are float32 whatever it is.
            device: where it computes.
            revision: of a hub repository.
            name: of the reward.

        Raises:
            ValueError: if the folder is missing, holds another model or none, or its weights are incomplete.
        """
        from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

        compute = named_dtype(dtype)
        check_model_type(source, "clip", class_name="CLIPModel")
        model = load_pretrained(CLIPModel, source, dtype=compute, revision=revision)
        beside, at = (source, revision) if processor is None else (processor, None)  # a revision is of one repository
        return cls(
            model.to(device),
            load_tokenizer(CLIPTokenizer, beside, revision=at),
            ImageInput.of_processor(load_processor(CLIPImageProcessor, beside, revision=at)),
            scale=scale,
            preprocess=preprocess,
            micro_batch=micro_batch,
            name=name,
        )

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.model.logit_scale.device

    def to(self, device: str | torch.device) -> None:
        """Move the weights; embeddings of prompts stay known."""
        move(self.model, device)

    def with_model(self, model: nn.Module) -> Self:
        """The same reward by another network of the same make, which is frozen."""
        other = copy.copy(self)
        other.model = cast("CLIPModel", frozen(model))
        other._texts = TextCache(other._read)
        return other

    def score(
        self,
        media: Tensor,
        prompts: Sequence[str],
        *,
        metadata: Metadata | None = None,
        sigma: float | None = None,
    ) -> RewardOutput:
        """Score pixels in [0, 1], [N, 3, H, W], against one prompt each; ``metadata`` and ``sigma`` are not used.

        Raises:
            ValueError: if the numbers differ, the media are no pictures, or ``exact`` is asked for a gradient.
        """
        check_media(media, prompts, reader=self.name)
        cosine = (self.embed_images(media) * self.embed_texts(prompts)).sum(dim=-1)
        return RewardOutput(self._scale(cosine, self.model.logit_scale.float().exp()).to(media.device))

    @property
    def unit(self) -> float:
        """The score of a cosine of 1."""
        return float(self._scale(torch.ones(()), self.model.logit_scale.detach().float().exp().cpu()))

    def embed_patches(self, media: Tensor) -> Tensor:
        """What the tower makes of each patch of pictures [N, 3, H, W] in [0, 1], before its places, [N, P, W]."""
        pixels = preprocess(media.to(self.device), self.wanted, mode=self._mode).to(self.model.dtype)
        return self.model.vision_model.embeddings.patch_embedding(pixels).flatten(2).transpose(1, 2).float()

    def embed_images(self, media: Tensor) -> Tensor:
        """Unit vectors of pictures [N, 3, H, W] in [0, 1], [N, D] float32; differentiable."""
        return F.normalize(in_micro_batches(self._embed, media, self._micro_batch), dim=-1)

    def embed_texts(self, prompts: Sequence[str]) -> Tensor:
        """Unit vectors of prompts, [N, D] float32; each distinct prompt is read once, cut to the model's length."""
        readings = self._texts.readings(prompts, keep=not in_training(self.model))
        return torch.stack([reading.to(self.device) for reading in readings])

    def _embed(self, media: Tensor) -> Tensor:
        pixels = preprocess(media.to(self.device), self.wanted, mode=self._mode).to(self.model.dtype)
        return self.model.visual_projection(self.model.vision_model(pixel_values=pixels).pooler_output)

    def _read(self, prompt: str) -> Tensor:
        self._limit.note(prompt, len(self.tokenizer(prompt, verbose=False).input_ids))
        # Attention is causal, so that what pads a prompt to the length of others would change nothing.
        batch = self.tokenizer([prompt], truncation=True, max_length=self._limit.longest, return_tensors="pt")
        ids, mask = batch.input_ids.to(self.device), batch.attention_mask.to(self.device)
        hidden = self.model.text_model(input_ids=ids, attention_mask=mask)
        return F.normalize(self.model.text_projection(hidden.pooler_output).float(), dim=-1)[0]
