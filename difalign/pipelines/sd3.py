"""Stable Diffusion 3 and 3.5: a rectified-flow MMDiT, CLIP and T5 text encoders, a 2D autoencoder.

Esser et al., arXiv 2403.03206. Every seam is float32 (latents, predictions, pixels) whatever dtype the network has.

Which equalities hold to the last bit in float32: a noise-free walk from ``initial_latents`` through ``predict``
equals ``StableDiffusion3Pipeline.__call__`` on the same batch, for one prompt with ``num_images_per_prompt`` seeds,
and for a list of prompts if that call is given the same embeddings. Rows of a batch are *not* promised the same bits at
another batch size: matrix kernels choose their blocking by shape, and results then differ in the last place (about
1e-7 relative). ``encode`` avoids the question by encoding each text alone; diffusers encodes a list of prompts as
one batch, so that its embeddings, and they only, may differ from these in the last place.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor, nn

from difalign.core.protocols import Condition, Process
from difalign.core.types import Branches, NoiseGrid
from difalign.pipelines.adapter import Adapter
from difalign.pipelines.flow_grids import check_scheduler, sd3_grid
from difalign.pipelines.guidance import Guidance
from difalign.pipelines.latents import LatentShape, check_latents, decode_pixels
from difalign.pipelines.loading import check_class, load_diffusers
from difalign.pipelines.prompt_cache import Embedding
from difalign.pipelines.prompt_encoder import PromptEncoder
from difalign.pipelines.tuning import Tuning

if TYPE_CHECKING:
    from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import StableDiffusion3Pipeline

LORA_TARGETS = (  # Flow-GRPO (arXiv 2505.05470), released SD3 trainer: every projection of the joint attention
    "attn.add_k_proj",
    "attn.add_q_proj",
    "attn.add_v_proj",
    "attn.to_add_out",
    "attn.to_k",
    "attn.to_out.0",
    "attn.to_q",
    "attn.to_v",
)
_PIPELINE_CLASS = "StableDiffusion3Pipeline"
_COMPONENT = "transformer"  # the network's name in the diffusers pipeline and in LoRA files
_OPTIONAL = ("text_encoder_3", "tokenizer_3")
_NEGATIVE_PROMPT = ""  # what diffusers takes when none is given
_LONGEST_SEQUENCE = 512  # diffusers refuses more


@final
class SD3Pipeline(Adapter):
    """SD3 behind ``core.protocols.Pipeline``; everything but the network stays frozen.

    Args:
        diffusers_pipeline: a loaded StableDiffusion3Pipeline; it is used in place and its autoencoder made float32.
        process: how a state moves one level.
        guidance_scale: w in u + w (c - u); at or below 1 only the conditional branch is run, as in diffusers.
        detach_uncond: let no gradient through the unconditional branch.
        max_sequence_length: T5 tokens per prompt. A pipeline *without* a T5 encoder appends that many zero tokens:
            pass what the model was trained with.
        height, width: pixels; None takes what the network was trained at.

    Raises:
        ValueError: for a pipeline of another class, or a size, length or scale that the model cannot take.
    """

    def __init__(
        self,
        diffusers_pipeline: StableDiffusion3Pipeline,
        *,
        process: Process,
        guidance_scale: float = 4.5,  # SD3.5 medium, Flow-GRPO's setting
        detach_uncond: bool = False,
        max_sequence_length: int = 256,  # diffusers' default
        height: int | None = None,
        width: int | None = None,
    ) -> None:
        check_class(diffusers_pipeline, _PIPELINE_CLASS)
        check_scheduler(diffusers_pipeline.scheduler)
        length = _checked_length(diffusers_pipeline, max_sequence_length)
        super().__init__(
            diffusers_pipeline,
            process=process,
            guidance=Guidance(guidance_scale, detach_uncond),
            tuning=Tuning(diffusers_pipeline.transformer, component=_COMPONENT, lora_targets=LORA_TARGETS),
            prompts=PromptEncoder(
                _text_encoders(diffusers_pipeline),
                encode=partial(_encode, diffusers_pipeline, length=length),
                negative=lambda encode: encode(_NEGATIVE_PROMPT),
            ),
            latent_shape=_checked_shape(diffusers_pipeline, height, width),
        )

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | Path,
        *,
        process: Process,
        guidance_scale: float = 4.5,
        detach_uncond: bool = False,
        max_sequence_length: int = 256,
        height: int | None = None,
        width: int | None = None,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        revision: str | None = None,
        variant: str | None = None,
        local_files_only: bool = False,
    ) -> SD3Pipeline:
        """Load a diffusers folder or a hub id; ``dtype`` is for network and text encoders, the autoencoder is float32.

        Raises:
            ValueError: if it is a pipeline of another class; see also the constructor.
        """
        pipe = load_diffusers(
            str(path_or_id),
            pipeline_class=_PIPELINE_CLASS,
            optional=_OPTIONAL,
            dtype=dtype,
            device=device,
            revision=revision,
            variant=variant,
            local_files_only=local_files_only,
        )
        return cls(
            pipe,
            process=process,
            guidance_scale=guidance_scale,
            detach_uncond=detach_uncond,
            max_sequence_length=max_sequence_length,
            height=height,
            width=width,
        )

    def grid(self, num_steps: int) -> NoiseGrid:
        """The levels that ``StableDiffusion3Pipeline.__call__`` walks through, bit for bit, on the CPU.

        Raises:
            ValueError: if num_steps is below 1.
        """
        patch = self._pipe.transformer.config.patch_size
        _, height, width = self._latent_shape
        return sd3_grid(self._pipe.scheduler, num_steps, image_tokens=(height // patch) * (width // patch))

    def predict_branches(self, x: Tensor, model_time: Tensor, condition: Condition) -> Branches:
        """The velocity v = noise - data, guided and not, each [N, C, h, w] float32; model_time is [N], 0 to 1000.

        Raises:
            ValueError: if x, model_time and condition do not agree, or x has another shape than ``latent_shape``.
        """
        check_latents(x, self._latent_shape)
        return self._guidance.branches(self._velocity, x, model_time, condition)

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels in [0, 1], [N, 3, H, W] float32; see ``latents.decode_pixels``.

        All rows are decoded at once; a caller that is short of memory passes fewer.

        Raises:
            ValueError: if the latents have another shape than ``latent_shape``.
        """
        check_latents(latents, self._latent_shape)
        config = self._pipe.vae.config
        z = latents.to(torch.float32) / config.scaling_factor + (config.shift_factor or 0.0)
        return decode_pixels(self._pipe.vae, z)

    def _velocity(self, x: Tensor, model_time: Tensor, texts: Embedding) -> Tensor:
        """One call of the network: into its dtype, and out in float32."""
        network = self._tuning.policy(self._forward)
        dtype = self._pipe.transformer.pos_embed.proj.weight.dtype  # of the base: adapters are float32
        output = network(
            hidden_states=x.to(dtype),
            timestep=model_time,
            encoder_hidden_states=texts[0].to(dtype),
            pooled_projections=texts[1].to(dtype),
            return_dict=False,
        )
        return output[0].to(torch.float32)


def _text_encoders(pipe: Any) -> list[nn.Module]:
    return [e for e in (pipe.text_encoder, pipe.text_encoder_2, pipe.text_encoder_3) if e is not None]


def _encode(pipe: Any, text: str, *, length: int) -> Embedding:
    embeds, _, pooled, _ = pipe.encode_prompt(
        prompt=[text],
        prompt_2=None,  # the same text for every encoder
        prompt_3=None,
        device=pipe.text_encoder.device,
        do_classifier_free_guidance=False,
        max_sequence_length=length,
    )
    return embeds, pooled


def _checked_length(pipe: Any, length: int) -> int:
    shortest = 0 if pipe.text_encoder_3 is None else 1
    if not shortest <= length <= _LONGEST_SEQUENCE:
        raise ValueError(f"max_sequence_length must be {shortest} to {_LONGEST_SEQUENCE} here, got {length}")
    return length


def _checked_shape(pipe: Any, height: int | None, width: int | None) -> LatentShape:
    config, factor = pipe.transformer.config, pipe.vae_scale_factor
    sides = [config.sample_size * factor if side is None else side for side in (height, width)]
    unit, largest = factor * config.patch_size, factor * config.patch_size * config.pos_embed_max_size
    if any(side < unit or side % unit or side > largest for side in sides):
        raise ValueError(
            f"height and width must be multiples of {unit} up to {largest}, got height={sides[0]}, width={sides[1]}"
        )
    return config.in_channels, sides[0] // factor, sides[1] // factor
