"""The noise levels on both sides of a step, looked up once and broadcast against the latents."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from difalign.core.gaussian import as_rows, broadcast_rows, compute_dtype
from difalign.core.types import NoiseGrid


@dataclass(frozen=True, slots=True)
class Levels:
    """The level a step starts at and the one it ends at, one row per latent; x = alpha * x0 + sigma * noise."""

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
    """The levels on both sides of ``step``, on the device and in the compute dtype of ``like``.

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

    def rows(values: Tensor) -> Tensor:
        return broadcast_rows(values.to(device=like.device, dtype=dtype)[index], like)

    ends = grid.sigma[[1, -1]].to(device=like.device, dtype=dtype)
    return Levels(
        alpha=rows(grid.alpha),
        sigma=rows(grid.sigma),
        alpha_next=rows(grid.alpha_next),
        sigma_next=rows(grid.sigma_next),
        sigma_second=ends[0],
        sigma_last=ends[1],
    )


def align(x: Tensor, other: Tensor, grid: NoiseGrid, step: int | Tensor) -> tuple[Tensor, Tensor, Levels]:
    """Both tensors ([N, *latent]) in the common compute dtype, and the levels that go with them."""
    dtype = compute_dtype(x, other)
    x, other = x.to(dtype), other.to(dtype)
    return x, other, levels_at(grid, step, x)


def noise_rows(noise_level: float | Tensor, x: Tensor, *, maximum: float) -> Tensor:
    """The noise level as [N, 1, ...]; its range is checked where that waits for no device.

    Raises:
        ValueError: if a noise level lies outside [0, maximum].
    """
    host = not isinstance(noise_level, Tensor) or noise_level.device.type == "cpu"
    rows = as_rows(noise_level, x, dtype=x.dtype)
    if host:
        values = [noise_level] if not isinstance(noise_level, Tensor) else noise_level.flatten().tolist()
        outside = [value for value in values if not 0 <= value <= maximum]
        if outside:
            raise ValueError(f"noise_level must lie in [0, {maximum}], got {outside[0]}; 0 is the ODE")
    return broadcast_rows(rows, x)


def _check_step(step: int | Tensor, num_steps: int) -> None:
    if isinstance(step, Tensor):
        if step.device.type != "cpu" or step.numel() == 0:
            return
        low, high = int(step.min()), int(step.max())
    else:
        low = high = step
    if low < 0 or high >= num_steps:
        raise ValueError(f"step must lie in [0, {num_steps - 1}] for a grid of {num_steps} steps, got {low} to {high}")
