"""FLUX.1: a rectified-flow transformer, a pooled CLIP text and T5 tokens, a 2D autoencoder.

The network of FLUX.1 [dev] was distilled to take its guidance scale as an input: one branch, whatever the scale. That
of FLUX.1 [schnell] takes none at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from difalign.pipelines.guidance import EmbeddedGuidance, Guides, Unguided
from difalign.pipelines.latents import decode_pixels
from difalign.pipelines.packed import PackedFamily
from difalign.pipelines.prompt_cache import Embedding, Encode, Stack, side_by_side

_GUIDANCE_SCALE = 3.5  # of FLUX.1 [dev], diffusers' default


@final
@dataclass(frozen=True, slots=True)
class FluxParts:
    """Two text encoders, an embedded guidance scale, positions of tokens, and a scaled autoencoder."""

    pipe: Any  # a diffusers FluxPipeline

    @property
    def first_layer(self) -> nn.Module:
        """What reads the tokens of an image."""
        return self.pipe.transformer.x_embedder

    @property
    def stack(self) -> Stack:
        """Texts are padded to one length by the tokenizers."""
        return side_by_side

    def guidance(self, scale: float | None, *, detach_uncond: bool) -> Guides:  # noqa: ARG002  # nothing to detach
        """An input of the network, or nothing."""
        if self._takes_scale():
            return EmbeddedGuidance(_GUIDANCE_SCALE if scale is None else scale)
        return Unguided(1.0 if scale is None else scale)

    def encoders(self) -> list[nn.Module]:
        """CLIP and T5."""
        return [self.pipe.text_encoder, self.pipe.text_encoder_2]

    def encode(self, text: str, *, length: int) -> Embedding:
        """T5's tokens [1, length, D] and CLIP's pooled text [1, P]."""
        embeds, pooled, _ = self.pipe.encode_prompt(
            prompt=[text], device=self.pipe.text_encoder.device, max_sequence_length=length
        )
        return embeds, pooled

    def negative(self, encode: Encode) -> Embedding:  # noqa: ARG002  # nothing to encode
        """Nothing: there is no unconditional branch."""
        return ()

    def inputs(self, texts: Embedding, tokens: tuple[int, int], scale: float) -> dict[str, Any]:
        """What the transformer takes of them; the positions of texts are all 0."""
        embeds, pooled = texts
        device = embeds.device
        guidance = torch.full((embeds.shape[0],), scale, device=device) if self._takes_scale() else None
        return {
            "encoder_hidden_states": embeds,
            "pooled_projections": pooled,
            "txt_ids": torch.zeros(embeds.shape[1], 3, device=device),
            "img_ids": _positions(tokens, device),
            "guidance": guidance,
        }

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels in [0, 1], [N, 3, H, W]."""
        config = self.pipe.vae.config
        return decode_pixels(self.pipe.vae, latents / config.scaling_factor + config.shift_factor)

    def _takes_scale(self) -> bool:
        return self.pipe.transformer.config.guidance_embeds


def _positions(tokens: tuple[int, int], device: torch.device) -> Tensor:
    """(0, row, column) of every token of an image, row by row, [L, 3] float32."""
    rows, columns = (torch.arange(count, dtype=torch.float32, device=device) for count in tokens)
    return torch.cartesian_prod(rows.new_zeros(1), rows, columns)


FLUX = PackedFamily(
    pipeline_class="FluxPipeline",
    parts=FluxParts,
    lora_targets=(  # Flow-GRPO, released FLUX trainer: attention of all blocks, feed-forwards of the two-stream ones
        "attn.add_k_proj",
        "attn.add_q_proj",
        "attn.add_v_proj",
        "attn.to_add_out",
        "attn.to_k",
        "attn.to_out.0",
        "attn.to_q",
        "attn.to_v",
        "ff.net.0.proj",
        "ff.net.2",
        "ff_context.net.0.proj",
        "ff_context.net.2",
    ),
    longest_text=512,
    optional=("image_encoder", "feature_extractor"),
)
