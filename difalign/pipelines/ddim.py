"""The DDIM sampler that a diffusion pipeline's own noise schedule gives, and the levels it walks through."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch

from difalign.core.types import NoiseGrid

if TYPE_CHECKING:
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler


def ddim_scheduler(scheduler: Any) -> DDIMScheduler:
    """A DDIMScheduler with the betas of ``scheduler``, whatever sampler the pipeline came with.

    It is what ``DDIMScheduler.from_config(pipe.scheduler.config)`` gives, save that a configuration that does not speak
    of clipping does not clip: DDIM's own default would cut latents off at 1.

    Raises:
        ValueError: if ``scheduler`` has no betas (a flow model's), clips, or starts from pure noise with a network that
            predicts the noise, which then says nothing about the data.
    """
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    name, config = type(scheduler).__name__, dict(scheduler.config)
    if "beta_schedule" not in config:
        raise ValueError(f"{name} has no betas, so it is not a diffusion model's: use the adapter of its family")
    clipping = [key for key in ("clip_sample", "thresholding") if config.get(key)]
    if clipping:
        raise ValueError(
            f"{name} has {clipping[0]} = true, which cuts the clean estimate off and is made for pixels: "
            "set it to false in the pipeline's scheduler/scheduler_config.json"
        )
    made = DDIMScheduler.from_config(config, clip_sample=False, thresholding=False)
    assert isinstance(made, DDIMScheduler), type(made)
    if float(made.alphas_cumprod[-1]) == 0.0 and made.config["prediction_type"] == "epsilon":
        raise ValueError(
            f"{name} has rescale_betas_zero_snr = true with prediction_type = epsilon: at the first level the noise "
            "says nothing about the data; such a model predicts v or the sample"
        )
    return made


def ddim_grid(scheduler: DDIMScheduler, num_steps: int) -> NoiseGrid:
    """The levels that ``DDIMScheduler`` walks through, bit for bit, on the CPU; the scheduler stays as it was.

    Raises:
        ValueError: if num_steps is out of range.
    """
    train: int = scheduler.config["num_train_timesteps"]
    if not 1 <= num_steps <= train:
        raise ValueError(f"a chain of this model has 1 to {train} steps, got num_steps={num_steps}")
    walked = copy.deepcopy(scheduler)
    walked.set_timesteps(num_steps)
    timesteps = walked.timesteps.cpu()
    if timesteps.numel() != num_steps or int(timesteps[0]) >= train:
        raise ValueError(
            f"num_steps={num_steps} gives {timesteps.numel()} timesteps from {int(timesteps[0])}, beyond the {train} "
            "of training: use fewer steps"
        )
    kept, landing = walked.alphas_cumprod, timesteps - train // num_steps
    kept_landing = torch.where(landing >= 0, kept[landing.clamp(min=0)], walked.final_alpha_cumprod)
    return NoiseGrid.variance_preserving(kept[timesteps], kept_landing, timesteps)
