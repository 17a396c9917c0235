"""The noise levels on both sides of a step, looked up once and broadcast against the latents."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from difalign.core.gaussian import as_rows, broadcast_rows, compute_dtype
from difalign.core.types import NoiseGrid


@dataclass(frozen=True, slots=True)
class Levels:
    """Level ``i`` and level ``i + 1`` of a grid, one row per latent; x = alpha * x0 + sigma * noise."""

    alpha: Tensor  # [N, 1, ...]
    sigma: Tensor  # [N, 1, ...]
    alpha_next: Tensor  # [N, 1, ...]
    sigma_next: Tensor  # [N, 1, ...]
    sigma_second: Tensor  # [], sigma of the grid's second level: replaces sigma where a rule diverges at 1
    sigma_last: Tensor  # [], sigma of the grid's last level

    @property
    def dt(self) -> Tensor:
        """sigma_next - sigma, negative, [N, 1, ...]."""
        return self.sigma_next - self.sigma


def levels_at(grid: NoiseGrid, step: int | Tensor, like: Tensor) -> Levels:
    """Levels ``step`` and ``step + 1`` of ``grid``, on the device and in the compute dtype of ``like``.

    Args:
        grid: the chain, T steps.
        step: an int or [N] int64 in [0, T); rows may stand at different steps.
        like: latents [N, *latent], which give N, rank, device and dtype.

    Raises:
        ValueError: if a step is outside [0, T) (an int, or a tensor on the CPU: no device is waited for).
    """
    _check_step(step, grid.num_steps)
    dtype = compute_dtype(like)
    index = as_rows(step, like, dtype=torch.int64)
    alpha = grid.alpha.to(device=like.device, dtype=dtype)
    sigma = grid.sigma.to(device=like.device, dtype=dtype)
    return Levels(
        alpha=broadcast_rows(alpha[index], like),
        sigma=broadcast_rows(sigma[index], like),
        alpha_next=broadcast_rows(alpha[index + 1], like),
        sigma_next=broadcast_rows(sigma[index + 1], like),
        sigma_second=sigma[1],
        sigma_last=sigma[-1],
    )


def _check_step(step: int | Tensor, num_steps: int) -> None:
    if isinstance(step, Tensor):
        if step.device.type != "cpu" or step.numel() == 0:
            return
        low, high = int(step.min()), int(step.max())
    else:
        low = high = step
    if low < 0 or high >= num_steps:
        raise ValueError(f"step must lie in [0, {num_steps - 1}] for a grid of {num_steps} steps, got {low} to {high}")
