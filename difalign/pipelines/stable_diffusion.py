"""Stable Diffusion 1.x and 2.x: a UNet under DDIM, one CLIP text encoder, a 2D autoencoder.

Rombach et al., arXiv 2112.10752. 1.x and 2.x-base predict the noise, 2.x at 768 pixels v.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

from torch import Tensor, nn

from difalign.pipelines.prompt_cache import Embedding
from difalign.pipelines.unet import UNetFamily

_NEGATIVE_PROMPT = ""  # what diffusers takes when none is given


@final
@dataclass(frozen=True, slots=True)
class ClipText:
    """One CLIP encoder: its last hidden states."""

    pipe: Any  # a diffusers StableDiffusionPipeline

    def encoders(self) -> list[nn.Module]:
        """The text encoder."""
        return [self.pipe.text_encoder]

    def encode(self, text: str) -> Embedding:
        """Token embeddings [1, L, D]."""
        encoder = self.pipe.text_encoder
        return (self.pipe.encode_prompt([text], encoder.device, 1, False)[0],)

    def negative(self) -> Embedding:
        """Those of the empty prompt."""
        return self.encode(_NEGATIVE_PROMPT)

    def inputs(self, texts: Embedding, pixels: tuple[int, int]) -> dict[str, Any]:  # noqa: ARG002  # SDXL asks for them
        """What the UNet takes of them."""
        return {"encoder_hidden_states": texts[0]}

    def unscaled(self, latents: Tensor) -> Tensor:
        """The latents as the autoencoder takes them, [N, C, h, w]."""
        return latents / self.pipe.vae.config.scaling_factor


STABLE_DIFFUSION = UNetFamily(
    pipeline_class="StableDiffusionPipeline",
    texts=ClipText,
    guidance_scale=7.5,  # diffusers' default
    optional=("safety_checker", "feature_extractor", "image_encoder"),
    # It would only blacken pictures on the way to the reward; diffusers warns unless told that none is required.
    replacing={"safety_checker": None, "requires_safety_checker": False},
)
