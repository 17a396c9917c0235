"""Rectified flows over packed latents: what FLUX.1 and Qwen-Image have in common.

Their transformers read one token for 2x2 latent elements. That stays inside ``predict``: latents are [N, C, h, w] at
every seam, as those of the other families, so that rows, checks, previews and decoding know nothing of it. Every
step of the chain works element by element, so the order of elements changes no value. Every seam is float32 whatever
dtype the network has.

Which equalities hold to the last bit in float32 on a CPU: a walk from ``initial_latents`` through ``predict`` and the
process at noise level 0 equals diffusers' pipeline on the same batch, for one prompt with ``num_images_per_prompt``
seeds, and for a list of prompts if that call is given the same embeddings; see ``difalign.pipelines.sd3`` for the
reason.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, final

import torch
from torch import Tensor, nn

from difalign.core.protocols import Condition, Process
from difalign.core.types import Branches, NoiseGrid
from difalign.pipelines.adapter import Adapter
from difalign.pipelines.flow_grids import check_scheduler, packed_grid
from difalign.pipelines.guidance import Guides
from difalign.pipelines.latents import LatentShape, check_latents, pack, unpack
from difalign.pipelines.loading import check_class, load_diffusers
from difalign.pipelines.prompt_cache import Embedding, Encode, Stack
from difalign.pipelines.prompt_encoder import PromptEncoder
from difalign.pipelines.tuning import Tuning

_COMPONENT = "transformer"  # the network's name in the diffusers pipeline and in LoRA files
_TIMES = 1000.0  # the network is called with sigma, grids hold a thousand times that


class PackedParts(Protocol):
    """How a family turns texts into the inputs of its transformer, guides it, and makes pixels of latents."""

    @property
    def first_layer(self) -> nn.Module:
        """What reads the tokens of an image."""
        ...

    @property
    def stack(self) -> Stack:
        """How the embeddings of several texts become one table."""
        ...

    def guidance(self, scale: float | None, *, detach_uncond: bool) -> Guides:
        """How this network is guided, at the family's own scale for None.

        Raises:
            ValueError: for a scale that the network cannot take.
        """
        ...

    def encoders(self) -> list[nn.Module]:
        """The text encoders."""
        ...

    def encode(self, text: str, *, length: int) -> Embedding:
        """One text of at most ``length`` tokens, each tensor [1, ...]; token embeddings come first."""
        ...

    def negative(self, encode: Encode) -> Embedding:
        """What guidance points away from when no negative prompt is given; empty where there is no such branch."""
        ...

    def inputs(self, texts: Embedding, tokens: tuple[int, int], scale: float) -> dict[str, Any]:
        """Arguments of the transformer's call from texts ([N, ...] each), (rows, columns) of tokens and the scale."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels in [0, 1], [N, 3, H, W], from [N, C, h, w] float32."""
        ...


@final
class PackedPipeline(Adapter):
    """A family with packed latents behind ``core.protocols.Pipeline``; everything but the network stays frozen.

    Args:
        diffusers_pipeline: loaded; it is used in place and its autoencoder made float32.
        parts: what tells its family from others.
        process: how a state moves one level.
        guidance: how the network is guided.
        prompts: holds the text encoders.
        lora_targets: the layers that adapters go to unless told otherwise.
        height, width: pixels; None takes diffusers' default, 1024.

    Raises:
        ValueError: for a scheduler of another kind, or a size the model cannot take.
    """

    def __init__(
        self,
        diffusers_pipeline: Any,
        parts: PackedParts,
        *,
        process: Process,
        guidance: Guides,
        prompts: PromptEncoder,
        lora_targets: tuple[str, ...],
        height: int | None,
        width: int | None,
    ) -> None:
        check_scheduler(diffusers_pipeline.scheduler)
        super().__init__(
            diffusers_pipeline,
            process=process,
            guidance=guidance,
            tuning=Tuning(diffusers_pipeline.transformer, component=_COMPONENT, lora_targets=lora_targets),
            prompts=prompts,
            latent_shape=_checked_shape(diffusers_pipeline, height, width),
        )
        self._parts = parts

    def grid(self, num_steps: int) -> NoiseGrid:
        """The levels that diffusers' pipeline walks through, bit for bit, on the CPU.

        Raises:
            ValueError: if there are too few steps.
        """
        rows, columns = self._tokens()
        return packed_grid(self._pipe.scheduler, num_steps, image_tokens=rows * columns)

    def predict_branches(self, x: Tensor, model_time: Tensor, condition: Condition) -> Branches:
        """The velocity v = noise - data, guided and not, each [N, C, h, w] float32; model_time is [N], 0 to 1000.

        Raises:
            ValueError: if x, model_time and condition do not agree, or x has another shape than ``latent_shape``.
        """
        check_latents(x, self._latent_shape)
        packed = self._guidance.branches(self._velocity, pack(x), model_time, condition)
        guided = unpack(packed.guided, self._latent_shape)
        alone = packed.conditional is packed.guided
        return Branches(guided, guided if alone else unpack(packed.conditional, self._latent_shape))

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels in [0, 1], [N, 3, H, W] float32; see ``latents.decode_pixels``.

        All rows are decoded at once; a caller that is short of memory passes fewer.

        Raises:
            ValueError: if the latents have another shape than ``latent_shape``.
        """
        check_latents(latents, self._latent_shape)
        return self._parts.decode(latents.to(torch.float32))

    def _velocity(self, tokens: Tensor, model_time: Tensor, texts: Embedding) -> Tensor:
        """One call of the network on [N, L, 4C]: into its dtype, and out in float32."""
        network = self._tuning.policy(self._forward)
        dtype: Any = self._parts.first_layer.weight.dtype  # of the base: adapters are float32
        cast = tuple(values.to(dtype) if values.is_floating_point() else values for values in texts)
        output = network(
            hidden_states=tokens.to(dtype),
            timestep=model_time / _TIMES,
            return_dict=False,
            **self._parts.inputs(cast, self._tokens(), self._guidance.scale),
        )
        return output[0].to(torch.float32)

    def _tokens(self) -> tuple[int, int]:
        """Rows and columns of tokens in one image."""
        _, height, width = self._latent_shape
        return height // 2, width // 2


def _checked_shape(pipe: Any, height: int | None, width: int | None) -> LatentShape:
    factor = pipe.vae_scale_factor
    sides = [pipe.default_sample_size * factor if side is None else side for side in (height, width)]
    unit = 2 * factor
    if any(side < unit or side % unit for side in sides):
        raise ValueError(f"height and width must be multiples of {unit}, got height={sides[0]}, width={sides[1]}")
    return pipe.transformer.config.in_channels // 4, sides[0] // factor, sides[1] // factor


@final
@dataclass(frozen=True, slots=True)
class PackedFamily:
    """What tells one family with packed latents from another; called, it wraps a loaded pipeline."""

    pipeline_class: str  # of diffusers
    parts: Callable[[Any], PackedParts]  # from the diffusers pipeline
    lora_targets: tuple[str, ...]
    longest_text: int  # tokens; diffusers refuses more
    optional: tuple[str, ...] = ()  # components that a pipeline may have been saved without

    def __call__(
        self,
        diffusers_pipeline: Any,
        *,
        process: Process,
        guidance_scale: float | None = None,
        detach_uncond: bool = False,
        max_sequence_length: int = 512,  # diffusers' default, for both families
        height: int | None = None,
        width: int | None = None,
    ) -> PackedPipeline:
        """Wrap a loaded diffusers pipeline of this family; see ``PackedPipeline``.

        Args:
            diffusers_pipeline: loaded; used in place.
            process: how a state moves one level.
            guidance_scale: None takes the family's own.
            detach_uncond: let no gradient through the unconditional branch, where there is one.
            max_sequence_length: tokens of a text at most.
            height, width: pixels; None takes 1024.

        Raises:
            ValueError: for a pipeline of another class, or a length or scale that the model cannot take; see also
                ``PackedPipeline``.
        """
        check_class(diffusers_pipeline, self.pipeline_class)
        if not 1 <= max_sequence_length <= self.longest_text:
            raise ValueError(f"max_sequence_length must be 1 to {self.longest_text} here, got {max_sequence_length}")
        parts = self.parts(diffusers_pipeline)
        return PackedPipeline(
            diffusers_pipeline,
            parts,
            process=process,
            guidance=parts.guidance(guidance_scale, detach_uncond=detach_uncond),
            prompts=PromptEncoder(
                parts.encoders(),
                encode=partial(parts.encode, length=max_sequence_length),
                negative=parts.negative,
                stack=parts.stack,
            ),
            lora_targets=self.lora_targets,
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
        max_sequence_length: int = 512,
        height: int | None = None,
        width: int | None = None,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        revision: str | None = None,
        variant: str | None = None,
        local_files_only: bool = False,
    ) -> PackedPipeline:
        """Load a diffusers folder or a hub id; ``dtype`` is for network and text encoders, the autoencoder is float32.

        Raises:
            ValueError: if it is a pipeline of another class; see also the call.
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
        )
        return self(
            pipe,
            process=process,
            guidance_scale=guidance_scale,
            detach_uncond=detach_uncond,
            max_sequence_length=max_sequence_length,
            height=height,
            width=width,
        )
