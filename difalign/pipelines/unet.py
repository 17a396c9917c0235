"""Latent diffusion with a UNet, sampled by DDIM: what Stable Diffusion 1.x, 2.x and XL have in common.

Every seam is float32 (latents, predictions, pixels) whatever dtype the network has. Which equalities hold to the last
bit in float32 on a CPU: a walk from ``initial_latents`` through ``predict`` and the process at noise level 0 equals
diffusers' pipeline with a ``DDIMScheduler`` on the same batch, for one prompt with ``num_images_per_prompt`` seeds, and
for a list of prompts if that call is given the same embeddings; see ``difalign.pipelines.sd3`` for the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, final

import torch
from torch import Tensor, nn

from difalign.core.protocols import Condition, Process, ReadsPredictions
from difalign.core.types import Branches, NoiseGrid
from difalign.pipelines.adapter import Adapter
from difalign.pipelines.ddim import ddim_grid, ddim_scheduler
from difalign.pipelines.guidance import Guidance
from difalign.pipelines.latents import LatentShape, check_latents, decode_pixels
from difalign.pipelines.loading import check_class, load_diffusers
from difalign.pipelines.prompt_cache import Embedding
from difalign.pipelines.prompt_encoder import PromptEncoder
from difalign.pipelines.tuning import Tuning

LORA_TARGETS = (  # DDPO (arXiv 2305.13301), released trainer: every projection of both attentions
    "attn1.to_k",
    "attn1.to_out.0",
    "attn1.to_q",
    "attn1.to_v",
    "attn2.to_k",
    "attn2.to_out.0",
    "attn2.to_q",
    "attn2.to_v",
)
_COMPONENT = "unet"  # the network's name in the diffusers pipeline and in LoRA files


class Texts(Protocol):
    """How a family turns texts into the inputs of its UNet, and latents into those of its autoencoder."""

    def encoders(self) -> list[nn.Module]:
        """The text encoders."""
        ...

    def encode(self, text: str) -> Embedding:
        """One text, each tensor [1, ...]; token embeddings come first."""
        ...

    def negative(self) -> Embedding:
        """What guidance points away from when no negative prompt is given."""
        ...

    def inputs(self, texts: Embedding, pixels: tuple[int, int]) -> dict[str, Any]:
        """Arguments of the UNet's call from texts ([N, ...] each) and (height, width)."""
        ...

    def unscaled(self, latents: Tensor) -> Tensor:
        """The latents as the autoencoder takes them."""
        ...


@final
class UNetPipeline(Adapter):
    """A UNet family behind ``core.protocols.Pipeline``; everything but the network stays frozen.

    Args:
        diffusers_pipeline: loaded; it is used in place and its autoencoder made float32. Its scheduler is replaced by a
            ``DDIMScheduler`` with the same betas.
        texts: how its texts are encoded.
        process: how a state moves one level, for any kind of prediction; the scheduler says which.
        guidance: the scale, and what gradient it lets through.
        height, width: pixels; None takes what the network was trained at.

    Raises:
        ValueError: for a process of another family, a scheduler without betas, or a size the model cannot take.
    """

    def __init__(
        self,
        diffusers_pipeline: Any,
        texts: Texts,
        *,
        process: Process,
        guidance: Guidance,
        height: int | None,
        width: int | None,
    ) -> None:
        if not isinstance(process, ReadsPredictions):
            raise ValueError(
                f"a diffusion model needs a DiffusionProcess, got {type(process).__name__}: its card must say "
                "`family: diffusion`"
            )
        unet = diffusers_pipeline.unet
        if unet.config.time_cond_proj_dim is not None:
            raise ValueError("the network takes its guidance as an input (a distilled model): this adapter has none")
        diffusers_pipeline.scheduler = ddim_scheduler(diffusers_pipeline.scheduler)
        super().__init__(
            diffusers_pipeline,
            process=process.reading(diffusers_pipeline.scheduler.config["prediction_type"]),
            guidance=guidance,
            tuning=Tuning(unet, component=_COMPONENT, lora_targets=LORA_TARGETS),
            prompts=PromptEncoder(texts.encoders(), encode=texts.encode, negative=lambda _: texts.negative()),
            latent_shape=_checked_shape(diffusers_pipeline, height, width),
        )
        self._texts = texts

    def grid(self, num_steps: int) -> NoiseGrid:
        """The levels that diffusers' pipeline walks through with DDIM, bit for bit, on the CPU.

        Raises:
            ValueError: if num_steps is out of range.
        """
        return ddim_grid(self._pipe.scheduler, num_steps)

    def predict_branches(self, x: Tensor, model_time: Tensor, condition: Condition) -> Branches:
        """The network's output, guided and not, each [N, C, h, w] float32; model_time is [N], the timestep.

        Raises:
            ValueError: if x, model_time and condition do not agree, or x has another shape than ``latent_shape``.
        """
        check_latents(x, self._latent_shape)
        return self._guidance.branches(self._call, x, model_time, condition)

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels in [0, 1], [N, 3, H, W] float32; see ``latents.decode_pixels``.

        All rows are decoded at once; a caller that is short of memory passes fewer.

        Raises:
            ValueError: if the latents have another shape than ``latent_shape``.
        """
        check_latents(latents, self._latent_shape)
        return decode_pixels(self._pipe.vae, self._texts.unscaled(latents.to(torch.float32)))

    def _call(self, x: Tensor, model_time: Tensor, texts: Embedding) -> Tensor:
        """One call of the network: into its dtype, and out in float32."""
        network = self._tuning.policy(self._forward)
        dtype = self._pipe.unet.conv_in.weight.dtype  # of the base: adapters are float32
        factor, (_, height, width) = self._pipe.vae_scale_factor, self._latent_shape
        inputs = self._texts.inputs(tuple(values.to(dtype) for values in texts), (height * factor, width * factor))
        return network(x.to(dtype), model_time, return_dict=False, **inputs)[0].to(torch.float32)


def _checked_shape(pipe: Any, height: int | None, width: int | None) -> LatentShape:
    factor, trained = pipe.vae_scale_factor, pipe.unet.config.sample_size
    defaults = (trained, trained) if isinstance(trained, int) else tuple(trained)
    sides = [
        default * factor if side is None else side for default, side in zip(defaults, (height, width), strict=True)
    ]
    if any(side < factor or side % factor for side in sides):
        raise ValueError(f"height and width must be multiples of {factor}, got height={sides[0]}, width={sides[1]}")
    return pipe.unet.config.in_channels, sides[0] // factor, sides[1] // factor


@final
@dataclass(frozen=True, slots=True)
class UNetFamily:
    """What tells one family of UNet pipelines from another; called, it wraps a loaded pipeline."""

    pipeline_class: str  # of diffusers
    texts: Callable[[Any], Texts]  # from the diffusers pipeline
    guidance_scale: float
    optional: tuple[str, ...]  # components that a pipeline may have been saved without
    replacing: Mapping[str, Any] = field(default_factory=dict)  # what is loaded in place of what was stored

    def __call__(
        self,
        diffusers_pipeline: Any,
        *,
        process: Process,
        guidance_scale: float | None = None,
        detach_uncond: bool = False,
        height: int | None = None,
        width: int | None = None,
    ) -> UNetPipeline:
        """Wrap a loaded diffusers pipeline of this family; see ``UNetPipeline``.

        Raises:
            ValueError: for a pipeline of another class; see also ``UNetPipeline``.
        """
        check_class(diffusers_pipeline, self.pipeline_class)
        scale = self.guidance_scale if guidance_scale is None else guidance_scale
        return UNetPipeline(
            diffusers_pipeline,
            self.texts(diffusers_pipeline),
            process=process,
            guidance=Guidance(scale, detach_uncond),
            height=height,
            width=width,
        )

    def from_pretrained(
        self,
        path_or_id: str | Path,
        *,
        process: Process,
        guidance_scale: float | None = None,
        detach_uncond: bool = False,
        height: int | None = None,
        width: int | None = None,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        revision: str | None = None,
        variant: str | None = None,
        local_files_only: bool = False,
    ) -> UNetPipeline:
        """Load a diffusers folder or a hub id; ``dtype`` is for network and text encoders, the autoencoder is float32.

        Raises:
            ValueError: if it is a pipeline of another class; see also ``UNetPipeline``.
        """
        pipe = load_diffusers(
            str(path_or_id),
            pipeline_class=self.pipeline_class,
            optional=self.optional,
            dtype=dtype,
            device=device,
            revision=revision,
            variant=variant,
            local_files_only=local_files_only,
            replacing=self.replacing,
        )
        return self(
            pipe,
            process=process,
            guidance_scale=guidance_scale,
            detach_uncond=detach_uncond,
            height=height,
            width=width,
        )
