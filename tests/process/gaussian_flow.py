"""A flow whose every moment is known: Gaussian data, the exact velocity, and moments without sampling."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from difalign.core.protocols import Process
from difalign.core.types import NoiseGrid

DATA_MEAN = 1.5
DATA_STD = 0.5


def shifted_grid(num_steps: int, *, shift: float = 1.0, first: float = 1.0) -> NoiseGrid:
    """A float64 grid from sigma = ``first`` to 0, shifted once."""
    uniform = torch.linspace(first, 0, num_steps + 1, dtype=torch.float64)
    sigma = shift * uniform / (1 + (shift - 1) * uniform)
    return NoiseGrid(alpha=1 - sigma, sigma=sigma, model_time=1000 * sigma[:-1])


def exact_velocity(x: Tensor, sigma: Tensor, *, std: float = DATA_STD) -> Tensor:
    """E[x1 - x0 | x] for x0 ~ N(1.5, std^2); it is affine in x."""
    variance = (1 - sigma) ** 2 * std**2 + sigma**2
    deviation = x - (1 - sigma) * DATA_MEAN
    return sigma / variance * deviation - (DATA_MEAN + (1 - sigma) * std**2 / variance * deviation)


def marginal_std(sigma: Tensor, *, std: float = DATA_STD) -> Tensor:
    """The std of x at each sigma."""
    return ((1 - sigma).square() * std**2 + sigma.square()).sqrt()


@dataclass(frozen=True, slots=True)
class Moments:
    """Mean and std of x at every level, by exact propagation through the discrete chain."""

    mean: Tensor  # [T+1]
    std: Tensor  # [T+1]


def levels_noise(grid: NoiseGrid, noise_level: float) -> Tensor:
    """``noise_level`` at every step but the last, which is an ODE step, [T]."""
    levels = torch.full((grid.num_steps,), noise_level, dtype=torch.float64)
    levels[-1] = 0
    return levels


def chain_moments(process: Process, noise_level: float, grid: NoiseGrid, *, std: float = DATA_STD) -> Moments:
    """Moments of the chain on the exact velocity, started from the exact marginal of level 0.

    Each step is x' = slope * x + offset + noise, so its coefficients can be read off at x = 0 and x = 1.
    """
    steps = torch.arange(grid.num_steps)
    sigma = grid.sigma[:-1, None]

    def transition(value: float) -> tuple[Tensor, Tensor]:
        x = torch.full((grid.num_steps, 1), value, dtype=torch.float64)
        velocity = exact_velocity(x, sigma, std=std)
        result = process.transition(x, velocity, grid, steps, levels_noise(grid, noise_level))
        return result.mean.flatten(), result.std.flatten()

    offset, injected = transition(0.0)
    slope = transition(1.0)[0] - offset
    means = [float(grid.alpha[0]) * DATA_MEAN]
    stds = [float(marginal_std(grid.sigma[0], std=std))]
    for a, b, s in zip(slope.tolist(), offset.tolist(), injected.tolist(), strict=True):
        means.append(a * means[-1] + b)
        stds.append(math.hypot(a * stds[-1], s))
    return Moments(mean=torch.tensor(means, dtype=torch.float64), std=torch.tensor(stds, dtype=torch.float64))
