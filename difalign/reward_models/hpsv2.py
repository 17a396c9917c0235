"""Human Preference Score v2 and v2.1 (arXiv 2306.09341): a CLIP ViT-H/14 trained on people's choices."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast, final

import torch
from torch import Tensor, nn

from difalign.core.types import Metadata, RewardOutput
from difalign.reward_models.checkpoints import find_checkpoint, load_strictly, read_state_dict
from difalign.reward_models.media_check import check_media
from difalign.reward_models.networks import check_micro_batch, frozen, in_micro_batches, in_training, named_dtype
from difalign.reward_models.preprocessing import PaddedInput, check_mode, preprocess
from difalign.reward_models.text_cache import LengthLimit, TextCache

if TYPE_CHECKING:
    from open_clip import CLIP

Tokenize = Callable[[str], Tensor]  # a prompt -> its token ids, [1, L] int64, cut and padded to the model's length
_ARCHITECTURE = "ViT-H-14"
_OTHER_TOKENS = 2  # begin and end


def load_open_clip(config: Mapping[str, Any], state: Mapping[str, Tensor], *, source: str) -> CLIP:
    """A CLIP model of open_clip by its configuration, with exactly the tensors of ``state``.

    Args:
        config: ``embed_dim``, ``vision_cfg`` and ``text_cfg``, as open_clip's configuration files have them.
        state: tensors by open_clip's names.
        source: named in errors.

    Raises:
        ValueError: if names or shapes differ.
    """
    import open_clip

    with torch.device("meta"):
        model = open_clip.CLIP(**config, output_dict=True)
    # The causal mask is no part of a checkpoint: nothing above the diagonal is seen.
    length = model.context_length
    mask = torch.full((length, length), -torch.inf).triu_(1)
    load_strictly(model, state, source=source, rebuilt={"attn_mask": mask})
    return model


@final
class HPSv2Reward:
    """The cosine between picture and prompt, without the temperature, in [-1, 1]; in practice about 0.19 to 0.35.

    v2 and v2.1 are the same network with other weights (released code). Scores of one prompt's samples lie within some
    hundredths, so the network computes in float32 unless told otherwise; the released code uses float16 on a GPU.
    """

    differentiable = True

    def __init__(
        self,
        model: CLIP,
        tokenizer: Any,
        wanted: PaddedInput,
        *,
        preprocess: str = "auto",
        micro_batch: int = 16,
        name: str = "hpsv2",
    ) -> None:
        self.name = name
        self.model = frozen(model)
        self.tokenizer = tokenizer
        self.wanted = wanted
        self._limit = LengthLimit(model.context_length, reader=name)
        self._texts = TextCache(self._read)
        self._mode = check_mode(preprocess)
        self._micro_batch = check_micro_batch(micro_batch)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        file: str = "HPS_v2_compressed.pt",
        sha256: str | None = None,
        preprocess: str = "auto",
        micro_batch: int = 16,
        dtype: str = "float32",
        device: str | torch.device = "cpu",
        revision: str | None = None,
        name: str = "hpsv2",
    ) -> Self:
        """Load the published checkpoint into open_clip's ViT-H/14.

        Args:
            source: a folder, or an id of the model hub.
            file: the checkpoint in there, with a ``state_dict``, or safetensors.
            sha256: of the file; None = not verified.
            preprocess: a mode of ``preprocessing``.
            micro_batch: pictures a forward; memory only.
            dtype: in which the network computes; scores are float32 whatever it is.
            device: where it computes.
            revision: of a hub repository.
            name: of the reward.

        Raises:
            ValueError: if the file cannot be had, or holds another model.
        """
        import open_clip

        compute = named_dtype(dtype)
        path = find_checkpoint(source, file=file, sha256=sha256, revision=revision)
        config: Any = open_clip.get_model_config(_ARCHITECTURE)
        model = load_open_clip(config, read_state_dict(path, within="state_dict"), source=str(path))
        return cls(
            model.to(device=device, dtype=compute),
            open_clip.get_tokenizer(_ARCHITECTURE),
            PaddedInput(config["vision_cfg"]["image_size"]),
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
        self.model.to(device)

    def with_model(self, model: nn.Module) -> Self:
        """The same reward by another network of the same make, which is frozen."""
        other = copy.copy(self)
        other.model = cast("CLIP", frozen(model))
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
        readings = self._texts.readings(prompts, keep=not in_training(self.model))
        texts = torch.stack([reading.to(self.device) for reading in readings])
        images = in_micro_batches(self._embed, media, self._micro_batch)
        return RewardOutput((images * texts).sum(dim=-1).to(media.device))

    def _embed(self, media: Tensor) -> Tensor:
        pixels = preprocess(media.to(self.device), self.wanted, mode=self._mode).to(self.model.logit_scale.dtype)
        return self.model.encode_image(pixels, normalize=True)

    def _read(self, prompt: str) -> Tensor:
        self._limit.note(prompt, len(self.tokenizer.encode(prompt)) + _OTHER_TOKENS)
        tokens = self.tokenizer([prompt], context_length=self._limit.longest).to(self.device)
        return self.model.encode_text(tokens, normalize=True)[0].float()
