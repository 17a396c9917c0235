"""The noise levels of flow models, from the scheduler that the model came with, as its pipeline calls it."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np

from difalign.core.types import NoiseGrid

if TYPE_CHECKING:
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler


def check_scheduler(scheduler: Any) -> None:
    """Refuse a scheduler that does not walk a flow model's levels by Euler steps.

    Raises:
        ValueError: naming it.
    """
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

    if not isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        raise ValueError(
            f"a flow model needs a FlowMatchEulerDiscreteScheduler, got {type(scheduler).__name__}: "
            "load the pipeline with the scheduler it came with"
        )


def sd3_grid(scheduler: FlowMatchEulerDiscreteScheduler, num_steps: int, *, image_tokens: int) -> NoiseGrid:
    """The levels ``StableDiffusion3Pipeline.__call__`` walks through, bit for bit, on the CPU.

    They come from a copy of the scheduler, called as that method calls it; the scheduler itself stays as it was.

    Args:
        scheduler: the pipeline's.
        num_steps: T.
        image_tokens: latent patches of one image, which a dynamic shift depends on.

    Raises:
        ValueError: if num_steps is below 1.
    """
    _check_num_steps(num_steps, least=1)
    walked: Any = copy.deepcopy(scheduler)
    dynamic = scheduler.config["use_dynamic_shifting"]
    mu = _dynamic_shift(scheduler, image_tokens) if dynamic else None
    walked.set_timesteps(num_steps, mu=mu)
    return _grid(walked)


def packed_grid(scheduler: FlowMatchEulerDiscreteScheduler, num_steps: int, *, image_tokens: int) -> NoiseGrid:
    """The levels ``FluxPipeline.__call__`` and ``QwenImagePipeline.__call__`` walk through, bit for bit, on the CPU.

    Both hand over T levels from 1 to 1/T, which the scheduler then shifts.

    Args:
        scheduler: the pipeline's; left as it was.
        num_steps: T.
        image_tokens: latent patches of one image.

    Raises:
        ValueError: if num_steps is below 1, or below 2 where the last level is given: one level cannot be both ends.
    """
    _check_num_steps(num_steps, least=2 if scheduler.config["shift_terminal"] else 1)
    walked: Any = copy.deepcopy(scheduler)
    levels = np.linspace(1.0, 1 / num_steps, num_steps)
    walked.set_timesteps(sigmas=levels, mu=_dynamic_shift(scheduler, image_tokens))
    return _grid(walked)


def _dynamic_shift(scheduler: FlowMatchEulerDiscreteScheduler, image_tokens: int) -> float:
    """mu of the resolution-dependent shift, linear in the image tokens."""
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    config = scheduler.config
    return calculate_shift(
        image_tokens,
        config["base_image_seq_len"],
        config["max_image_seq_len"],
        config["base_shift"],
        config["max_shift"],
    )


def _grid(walked: Any) -> NoiseGrid:
    sigma = walked.sigmas.cpu()
    return NoiseGrid(alpha=1.0 - sigma, sigma=sigma, model_time=walked.timesteps.cpu())


def _check_num_steps(num_steps: int, *, least: int) -> None:
    if num_steps < least:
        raise ValueError(f"this denoising chain needs at least {least} step(s), got num_steps={num_steps}")
