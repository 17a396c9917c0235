"""How well a picture fits its prompt by BLIP (arXiv 2201.12086): by cosine, or by its matching head."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from difalign.core.types import Metadata, RewardOutput
from difalign.reward_models.blip_text import BlipPrompts
from difalign.reward_models.checkpoints import check_model_type, load_pretrained, load_processor, load_tokenizer
from difalign.reward_models.media_check import check_media
from difalign.reward_models.networks import check_micro_batch, frozen, move, named_dtype
from difalign.reward_models.preprocessing import ImageInput, check_mode, preprocess

if TYPE_CHECKING:
    from transformers import BertTokenizer, BlipForImageTextRetrieval

Head = Callable[["BlipForImageTextRetrieval", Tensor, Tensor, Tensor], Tensor]


def matching(model: BlipForImageTextRetrieval, patches: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """The probability that picture and prompt belong together, in [0, 1], [N] float32."""
    read: Any = model.text_encoder(input_ids=ids, attention_mask=mask, encoder_hidden_states=patches, is_decoder=False)
    return model.itm_head(read.last_hidden_state[:, 0]).float().softmax(dim=-1)[:, 1]


def cosine(model: BlipForImageTextRetrieval, patches: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """The cosine between the projections of both, each read without the other, [N] float32."""
    read: Any = model.text_encoder(input_ids=ids, attention_mask=mask, is_decoder=False)
    text = F.normalize(model.text_proj(read.last_hidden_state[:, 0]).float(), dim=-1)
    return (text * F.normalize(model.vision_proj(patches[:, 0]).float(), dim=-1)).sum(dim=-1)


HEADS: Mapping[str, Head] = {"itm": matching, "cosine": cosine}


@final
class BlipReward:
    """BLIP's matching probability (``itm``), or its ``cosine``."""

    differentiable = True

    def __init__(
        self,
        model: BlipForImageTextRetrieval,
        tokenizer: BertTokenizer,
        wanted: ImageInput,
        *,
        head: str = "itm",
        preprocess: str = "auto",
        micro_batch: int = 16,
        name: str = "blip-itm",
    ) -> None:
        if head not in HEADS:
            raise ValueError(f"head = {head!r}: use one of: {', '.join(HEADS)}")
        self.name = name
        self.model = frozen(model)
        self.wanted = wanted
        self._head = HEADS[head]
        self._prompts = BlipPrompts(tokenizer, reader=name)
        self._mode = check_mode(preprocess)
        self._micro_batch = check_micro_batch(micro_batch)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        head: str = "itm",
        preprocess: str = "auto",
        micro_batch: int = 16,
        dtype: str = "float32",
        device: str | torch.device = "cpu",
        revision: str | None = None,
        name: str = "blip-itm",
    ) -> Self:
        """Load what ``BlipForImageTextRetrieval`` and ``BlipProcessor`` saved, or a hub repository.

        Args:
            source: a folder, or an id of the model hub.
            head: a key of ``HEADS``.
            preprocess: a mode of ``preprocessing``.
            micro_batch: pictures a forward; memory only.
            dtype: in which the network computes; scores are float32 whatever it is.
            device: where it computes.
            revision: of a hub repository.
            name: of the reward.

        Raises:
            ValueError: if the folder is missing, holds another model or none, or its weights are incomplete.
        """
        from transformers import BertTokenizer, BlipForImageTextRetrieval, BlipImageProcessor

        compute = named_dtype(dtype)
        check_model_type(source, "blip", class_name="BlipForImageTextRetrieval")
        model = load_pretrained(BlipForImageTextRetrieval, source, dtype=compute, revision=revision)
        return cls(
            model.to(device),
            load_tokenizer(BertTokenizer, source, revision=revision),
            ImageInput.of_processor(load_processor(BlipImageProcessor, source, revision=revision)),
            head=head,
            preprocess=preprocess,
            micro_batch=micro_batch,
            name=name,
        )

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.model.itm_head.weight.device

    def to(self, device: str | torch.device) -> None:
        """Move the weights."""
        move(self.model, device)

    def with_model(self, model: nn.Module) -> Self:
        """The same reward by another network of the same make, which is frozen."""
        other = copy.copy(self)
        other.model = cast("BlipForImageTextRetrieval", frozen(model))
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
        ids, mask = self._prompts.read(prompts, self.device)
        size = self._micro_batch
        rows = zip(media.split(size), ids.split(size), mask.split(size), strict=True)
        scores = torch.cat([self._head(self.model, self._patches(part), *tokens) for part, *tokens in rows])
        return RewardOutput(scores.to(media.device))

    def _patches(self, media: Tensor) -> Tensor:
        pixels = preprocess(media.to(self.device), self.wanted, mode=self._mode).to(self.model.dtype)
        return self.model.vision_model(pixel_values=pixels).last_hidden_state
