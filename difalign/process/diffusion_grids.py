"""Noise grids of diffusion models, equal to diffusers' DDIMScheduler to the last bit, from plain values."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from difalign.core.types import NoiseGrid

Timesteps = NDArray[np.int64]
Spacing = Callable[[int, int, int], Timesteps]  # (num_steps, num_train_timesteps, steps_offset) -> [T], falling
BetaSchedule = Callable[[float, float, int], Tensor]  # (beta_start, beta_end, num_train_timesteps) -> betas


def leading_timesteps(num_steps: int, num_train_timesteps: int, steps_offset: int) -> Timesteps:
    """Multiples of floor(T_train / T), plus the offset: ends near 0, starts short of T_train - 1."""
    stride = num_train_timesteps // num_steps
    return (np.arange(0, num_steps) * stride)[::-1].astype(np.int64) + steps_offset


def trailing_timesteps(num_steps: int, num_train_timesteps: int, steps_offset: int) -> Timesteps:  # noqa: ARG001
    """T_train - 1 and down in steps of T_train / T, rounded; the offset is not used (arXiv 2305.08891, Table 2)."""
    return np.round(np.arange(num_train_timesteps, 0, -num_train_timesteps / num_steps)).astype(np.int64) - 1


def linspace_timesteps(num_steps: int, num_train_timesteps: int, steps_offset: int) -> Timesteps:  # noqa: ARG001
    """T timesteps from T_train - 1 to 0, both included, rounded; the offset is not used."""
    return np.linspace(0, num_train_timesteps - 1, num_steps).round()[::-1].astype(np.int64)


def linear_betas(beta_start: float, beta_end: float, num_train_timesteps: int) -> Tensor:
    """Betas in equal steps (DDPM, arXiv 2006.11239), [T_train] float32."""
    return torch.linspace(beta_start, beta_end, num_train_timesteps, dtype=torch.float32)


def scaled_linear_betas(beta_start: float, beta_end: float, num_train_timesteps: int) -> Tensor:
    """Betas whose roots go in equal steps (Stable Diffusion), [T_train] float32."""
    return linear_betas(beta_start**0.5, beta_end**0.5, num_train_timesteps) ** 2


def zero_terminal_shares(kept: Tensor) -> Tensor:
    """``kept`` ([T_train], alphas_cumprod) with roots moved and stretched so that the last is 0 and the first stays.

    The noisiest level is then pure noise, as a chain's start is (arXiv 2305.08891, Algorithm 1). A prediction of the
    noise says nothing about the data there; such models predict v or the data. In the order of diffusers, which goes
    through the betas.
    """
    roots = kept.sqrt()
    moved = (roots - roots[-1]) * (roots[0] / (roots[0] - roots[-1]))
    stretched = moved**2
    betas = 1 - torch.cat([stretched[:1], stretched[1:] / stretched[:-1]])
    return (1.0 - betas).cumprod(dim=0)


SPACINGS: Mapping[str, Spacing] = {
    "leading": leading_timesteps,
    "trailing": trailing_timesteps,
    "linspace": linspace_timesteps,
}
BETA_SCHEDULES: Mapping[str, BetaSchedule] = {"linear": linear_betas, "scaled_linear": scaled_linear_betas}


def ddim_grid(
    num_steps: int,
    *,
    spacing: Spacing = leading_timesteps,
    steps_offset: int = 1,  # Stable Diffusion 1.x and 2.x
    set_alpha_to_one: bool = False,  # likewise
    zero_terminal_snr: bool = False,  # likewise; diffusers' rescale_betas_zero_snr
    betas: BetaSchedule = scaled_linear_betas,
    beta_start: float = 0.00085,  # likewise
    beta_end: float = 0.012,
    num_train_timesteps: int = 1000,
) -> NoiseGrid:
    """The chain that diffusers' DDIMScheduler walks; the defaults are those of Stable Diffusion.

    A step from timestep t ends at t - floor(T_train / T), as in that scheduler: beside the next level where the spacing
    is not uniform (``linspace``, and ``trailing`` where T does not divide T_train). Below timestep 0 it ends at the
    first alpha, or at 1 with ``set_alpha_to_one``.

    Raises:
        ValueError: if num_steps is out of range, or the timesteps of a spacing are.
    """
    if not 1 <= num_steps <= num_train_timesteps:
        raise ValueError(f"num_steps must lie in [1, {num_train_timesteps}], got {num_steps}")
    timesteps = torch.from_numpy(spacing(num_steps, num_train_timesteps, steps_offset).copy())
    if timesteps.numel() != num_steps or int(timesteps[0]) >= num_train_timesteps:
        raise ValueError(
            f"{num_steps} steps with steps_offset {steps_offset} give {timesteps.numel()} timesteps from "
            f"{int(timesteps[0])}, beyond the {num_train_timesteps} of training; use fewer steps"
        )
    kept = (1.0 - betas(beta_start, beta_end, num_train_timesteps)).cumprod(dim=0)
    if zero_terminal_snr:
        kept = zero_terminal_shares(kept)
    final = torch.ones(()) if set_alpha_to_one else kept[0]
    landing = timesteps - num_train_timesteps // num_steps
    kept_landing = torch.where(landing >= 0, kept[landing.clamp(min=0)], final)
    return NoiseGrid.variance_preserving(kept[timesteps], kept_landing, timesteps)
