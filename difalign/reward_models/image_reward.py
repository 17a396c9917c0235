"""ImageReward (arXiv 2304.05977): BLIP with a head trained on people's rankings."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast, final

import torch
from torch import Tensor, nn

from difalign.core.types import Metadata, RewardOutput
from difalign.reward_models.blip_text import BERT, BlipPrompts
from difalign.reward_models.checkpoints import find_checkpoint, load_strictly, load_tokenizer, read_state_dict
from difalign.reward_models.media_check import check_media
from difalign.reward_models.networks import check_micro_batch, frozen, named_dtype
from difalign.reward_models.preprocessing import (
    CLIP_MEAN,
    CLIP_STD,
    ImageInput,
    check_mode,
    preprocess,
    torchvision_crop_start,
)
from difalign.reward_models.score_head import score_head

if TYPE_CHECKING:
    from transformers import BertTokenizer, BlipTextConfig, BlipVisionConfig

MEAN, STD = 0.16717362830052426, 1.0333394966054072  # of raw scores, released code
SIDE = 224  # pixels
_BLOCK = r"^blip\.visual_encoder\.blocks\.(\d+)\."
# The names of ImageReward's checkpoint to those of transformers' BLIP modules; the first rule that fits is applied.
_RENAMED: tuple[tuple[str, str], ...] = (
    (r"^blip\.visual_encoder\.cls_token$", "vision.embeddings.class_embedding"),
    (r"^blip\.visual_encoder\.pos_embed$", "vision.embeddings.position_embedding"),
    (r"^blip\.visual_encoder\.patch_embed\.proj\.", "vision.embeddings.patch_embedding."),
    (r"^blip\.visual_encoder\.norm\.", "vision.post_layernorm."),
    (_BLOCK + r"norm([12])\.", r"vision.encoder.layers.\1.layer_norm\2."),
    (_BLOCK + r"attn\.qkv\.", r"vision.encoder.layers.\1.self_attn.qkv."),
    (_BLOCK + r"attn\.proj\.", r"vision.encoder.layers.\1.self_attn.projection."),
    (_BLOCK + r"mlp\.", r"vision.encoder.layers.\1.mlp."),
    (r"^blip\.text_encoder\.", "text."),
    (r"^mlp\.layers\.", "head."),
)
# Counts 0, 1, 2, ..., and the projections of BLIP's contrastive loss, which the score does not use.
_LEFT_OUT = re.compile(r"^blip\.text_encoder\..*position_ids$|^blip\.(vision|text)_proj\.")


def vision_config() -> BlipVisionConfig:
    """ViT-L/16 as BLIP has it; the ε of its normalisations is not the default of transformers."""
    from transformers import BlipVisionConfig

    return BlipVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=SIDE,
        patch_size=16,
        hidden_act="gelu",
        layer_norm_eps=1e-6,
    )


def text_config() -> BlipTextConfig:
    """BERT-base with cross-attention, as BLIP has it; 12 heads are not the default of transformers."""
    from transformers import BlipTextConfig

    return BlipTextConfig(
        vocab_size=30524,
        hidden_size=768,
        encoder_hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        layer_norm_eps=1e-12,
        is_decoder=True,  # makes the layers of cross-attention; attention itself looks both ways
    )


@final
class ImageRewardNetwork(nn.Module):
    """BLIP's vision and text networks and the head of the score."""

    def __init__(self, vision: BlipVisionConfig, text: BlipTextConfig) -> None:
        from transformers.models.blip.modeling_blip import BlipVisionModel
        from transformers.models.blip.modeling_blip_text import BlipTextModel

        super().__init__()
        self.vision = BlipVisionModel(vision)
        self.text = BlipTextModel(text, add_pooling_layer=False)
        self.head = score_head(text.hidden_size)

    def forward(self, pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Standardised scores [N] float32 of normalised pixels [N, 3, h, w] and tokens [N, L]."""
        patches = self.vision(pixel_values=pixels).last_hidden_state
        read: Any = self.text(input_ids=ids, attention_mask=mask, encoder_hidden_states=patches, is_decoder=False)
        raw = self.head(read.last_hidden_state[:, 0]).squeeze(-1).float()
        return (raw - MEAN) / STD


def renamed(state: Mapping[str, Tensor], *, source: str) -> dict[str, Tensor]:
    """The tensors of ImageReward's checkpoint under the names of ``ImageRewardNetwork``.

    Raises:
        ValueError: if a name is none of that checkpoint's.
    """
    found: dict[str, Tensor] = {}
    for key in state:
        if _LEFT_OUT.search(key):
            continue
        new = _renamed(key)
        if new is None:
            raise ValueError(f"{source}: is a checkpoint of another model than ImageReward: it has unknown {key}")
        found[new] = state[key]
    return found


def _renamed(key: str) -> str | None:
    for pattern, replacement in _RENAMED:
        new, number = re.subn(pattern, replacement, key)
        if number:
            return new
    return None


def load_network(
    state: Mapping[str, Tensor], *, vision: BlipVisionConfig, text: BlipTextConfig, source: str
) -> ImageRewardNetwork:
    """The network with exactly the tensors of ImageReward's checkpoint.

    Raises:
        ValueError: if names or shapes differ; the original says nothing then and scores with random weights.
    """
    with torch.device("meta"):
        network = ImageRewardNetwork(vision, text)
    positions = torch.arange(text.max_position_embeddings).expand(1, -1)
    rebuilt = {"text.embeddings.position_ids": positions}
    load_strictly(network, renamed(state, source=source), source=source, rebuilt=rebuilt)
    return network


@final
class ImageReward:
    """What people would prefer, about -2.3 to 2, standardised by the mean and deviation that the original uses."""

    differentiable = True

    def __init__(
        self,
        network: ImageRewardNetwork,
        tokenizer: BertTokenizer,
        wanted: ImageInput,
        *,
        preprocess: str = "auto",
        micro_batch: int = 16,
        name: str = "imagereward",
    ) -> None:
        self.name = name
        self.model = frozen(network)
        self.wanted = wanted
        self._prompts = BlipPrompts(tokenizer, reader=name)
        self._mode = check_mode(preprocess)
        self._micro_batch = check_micro_batch(micro_batch)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        file: str = "ImageReward.pt",
        sha256: str | None = None,
        tokenizer: str = BERT,
        preprocess: str = "auto",
        micro_batch: int = 16,
        dtype: str = "float32",
        device: str | torch.device = "cpu",
        revision: str | None = None,
        name: str = "imagereward",
    ) -> Self:
        """Load the published checkpoint into transformers' BLIP modules.

        Args:
            source: a folder, or an id of the model hub.
            file: the checkpoint in there.
            sha256: of the file; None = not verified.
            tokenizer: the folder or repository of BERT's uncased vocabulary.
            preprocess: a mode of ``preprocessing``.
            micro_batch: pictures a forward; memory only.
            dtype: in which the network computes; scores are float32 whatever it is.
            device: where it computes.
            revision: of a hub repository.
            name: of the reward.

        Raises:
            ValueError: if a file cannot be had, or holds another model.
        """
        from transformers import BertTokenizer

        compute = named_dtype(dtype)
        path = find_checkpoint(source, file=file, sha256=sha256, revision=revision)
        words = load_tokenizer(BertTokenizer, tokenizer, revision=None)
        state = read_state_dict(path)
        network = load_network(state, vision=vision_config(), text=text_config(), source=str(path))
        return cls(
            network.to(device=device, dtype=compute),
            words,
            image_input(SIDE),
            preprocess=preprocess,
            micro_batch=micro_batch,
            name=name,
        )

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._weight.device

    def to(self, device: str | torch.device) -> None:
        """Move the weights."""
        self.model.to(device)

    def with_model(self, model: nn.Module) -> Self:
        """The same reward by another network of the same make, which is frozen."""
        other = copy.copy(self)
        other.model = cast("ImageRewardNetwork", frozen(model))
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
        scores = torch.cat([self.model(self._pixels(part), *tokens) for part, *tokens in rows])
        return RewardOutput(scores.to(media.device))

    @property
    def _weight(self) -> Tensor:
        return next(self.model.parameters())

    def _pixels(self, media: Tensor) -> Tensor:
        return preprocess(media.to(self.device), self.wanted, mode=self._mode).to(self._weight.dtype)


def image_input(side: int) -> ImageInput:
    """How ImageReward's code prepares pictures: torchvision's shorter side and middle, CLIP's mean and deviation."""
    return ImageInput(side, (side, side), CLIP_MEAN, CLIP_STD, torchvision_crop_start)
