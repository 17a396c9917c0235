"""Stable Diffusion XL: a UNet under DDIM, two CLIP text encoders, a pooled text and the picture's size.

Podell et al., arXiv 2307.01952. The size is told as for an uncropped picture of the size asked for: original and target
size equal, crop (0, 0).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from difalign.pipelines.prompt_cache import Embedding
from difalign.pipelines.unet import UNetFamily

_NEGATIVE_PROMPT = ""  # what diffusers takes when none is given


@final
@dataclass(frozen=True, slots=True)
class TwoClipTexts:
    """Both encoders' penultimate hidden states side by side, and the second one's pooled text."""

    pipe: Any  # a diffusers StableDiffusionXLPipeline

    def encoders(self) -> list[nn.Module]:
        """The text encoders that there are; the refiner has no first one."""
        return [e for e in (self.pipe.text_encoder, self.pipe.text_encoder_2) if e is not None]

    def encode(self, text: str) -> Embedding:
        """Token embeddings [1, L, D] and pooled ones [1, P]."""
        embeds, _, pooled, _ = self.pipe.encode_prompt(
            prompt=text, device=self.encoders()[-1].device, do_classifier_free_guidance=False
        )
        return embeds, pooled

    def negative(self) -> Embedding:
        """Zeros, or the empty prompt's where the pipeline says so."""
        empty = self.encode(_NEGATIVE_PROMPT)
        if self.pipe.config.force_zeros_for_empty_prompt:
            return tuple(torch.zeros_like(values) for values in empty)
        return empty

    def inputs(self, texts: Embedding, pixels: tuple[int, int]) -> dict[str, Any]:
        """What the UNet takes of them and of (height, width)."""
        embeds, pooled = texts
        time_ids = torch.tensor([[*pixels, 0, 0, *pixels]], dtype=embeds.dtype, device=embeds.device)
        return {
            "encoder_hidden_states": embeds,
            "added_cond_kwargs": {"text_embeds": pooled, "time_ids": time_ids.expand(embeds.shape[0], -1)},
        }

    def unscaled(self, latents: Tensor) -> Tensor:
        """The latents as the autoencoder takes them, [N, C, h, w]."""
        config = self.pipe.vae.config
        mean, std = (getattr(config, key, None) for key in ("latents_mean", "latents_std"))
        if mean is None or std is None:
            return latents / config.scaling_factor
        mean, std = (latents.new_tensor(values).view(1, -1, 1, 1) for values in (mean, std))
        return latents * std / config.scaling_factor + mean


SDXL = UNetFamily(
    pipeline_class="StableDiffusionXLPipeline",
    texts=TwoClipTexts,
    guidance_scale=5.0,  # diffusers' default
    optional=("text_encoder", "tokenizer", "feature_extractor", "image_encoder"),
    replacing={"add_watermarker": False},  # an invisible mark would be decoded into the pixels
)
