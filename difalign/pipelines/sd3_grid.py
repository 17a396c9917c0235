"""The noise levels of Stable Diffusion 3, from the scheduler that the model came with."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from difalign.core.types import NoiseGrid

if TYPE_CHECKING:
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

_MAX_SHIFT = 1.16  # diffusers' SD3 call falls back to this, other pipelines to 1.15


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
    if num_steps < 1:
        raise ValueError(f"a denoising chain needs at least 1 step, got num_steps={num_steps}")
    walked: Any = copy.deepcopy(scheduler)
    walked.set_timesteps(num_steps, mu=_dynamic_shift(scheduler, image_tokens))
    sigma = walked.sigmas.cpu()
    return NoiseGrid(alpha=1.0 - sigma, sigma=sigma, model_time=walked.timesteps.cpu())


def _dynamic_shift(scheduler: FlowMatchEulerDiscreteScheduler, image_tokens: int) -> float | None:
    """mu of the resolution-dependent shift, linear in the image tokens; None where the shift is static."""
    from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import calculate_shift

    config = scheduler.config
    if not config.get("use_dynamic_shifting", False):
        return None
    return calculate_shift(
        image_tokens,
        config.get("base_image_seq_len", 256),
        config.get("max_image_seq_len", 4096),
        config.get("base_shift", 0.5),
        config.get("max_shift", _MAX_SHIFT),
    )
