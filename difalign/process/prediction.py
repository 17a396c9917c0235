"""What a network's output means: the estimates of data and noise in it, and the noise-free step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from difalign.process.levels import Levels


@dataclass(frozen=True, slots=True)
class Parameterisation:
    """How to read a prediction; three functions of (x, prediction, levels), each -> [N, *latent]."""

    clean: Callable[[Tensor, Tensor, Levels], Tensor]  # the estimate of x0
    noise: Callable[[Tensor, Tensor, Levels], Tensor]  # the estimate of the noise x1
    ode_step: Callable[[Tensor, Tensor, Levels], Tensor]  # alpha_next * x0 + sigma_next * x1, in its exact form


def flow_clean(x: Tensor, velocity: Tensor, levels: Levels) -> Tensor:
    """The estimate of x0 under x = (1 - sigma) * x0 + sigma * x1 and v = x1 - x0: x - sigma * v."""
    return x - levels.sigma * velocity


def flow_noise(x: Tensor, velocity: Tensor, levels: Levels) -> Tensor:
    """The estimate of x1 under x = (1 - sigma) * x0 + sigma * x1 and v = x1 - x0: x + (1 - sigma) * v."""
    return x + (1 - levels.sigma) * velocity


def euler_step(x: Tensor, velocity: Tensor, levels: Levels) -> Tensor:
    """x + v * dt, the Euler step of the probability-flow ODE dx = v d(sigma)."""
    return x + velocity * levels.dt


FLOW = Parameterisation(clean=flow_clean, noise=flow_noise, ode_step=euler_step)
