"""What a network's output means: the estimates of data and noise in it, and the noise-free step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from difalign.process.levels import Levels

Reading = Callable[[Tensor, Tensor, Levels], Tensor]  # (x, prediction, levels) -> [N, *latent]


@dataclass(frozen=True, slots=True)
class Parameterisation:
    """How to read a prediction."""

    clean: Reading  # the estimate of x0
    noise: Reading  # the estimate of the noise x1
    ode_step: Reading  # alpha_next * x0 + sigma_next * x1, in its exact form


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


def epsilon_clean(x: Tensor, epsilon: Tensor, levels: Levels) -> Tensor:
    """The estimate of x0 in a prediction of the noise: (x - sigma * eps) / alpha (DDIM, arXiv 2010.02502, Eq. 9)."""
    return (x - levels.sigma * epsilon) / levels.alpha


def epsilon_noise(x: Tensor, epsilon: Tensor, levels: Levels) -> Tensor:  # noqa: ARG001  # one signature for all
    """The noise, as predicted."""
    return epsilon


def v_clean(x: Tensor, v: Tensor, levels: Levels) -> Tensor:
    """The estimate of x0 in v = alpha * x1 - sigma * x0: alpha * x - sigma * v (arXiv 2202.00512, appendix D)."""
    return levels.alpha * x - levels.sigma * v


def v_noise(x: Tensor, v: Tensor, levels: Levels) -> Tensor:
    """The estimate of x1 in v = alpha * x1 - sigma * x0: alpha * v + sigma * x."""
    return levels.alpha * v + levels.sigma * x


def sample_clean(x: Tensor, sample: Tensor, levels: Levels) -> Tensor:  # noqa: ARG001  # one signature for all
    """The data, as predicted."""
    return sample


def sample_noise(x: Tensor, sample: Tensor, levels: Levels) -> Tensor:
    """The estimate of x1 in a prediction of the data: (x - alpha * x0) / sigma."""
    return (x - levels.alpha * sample) / levels.sigma


def _diffusion(clean: Reading, noise: Reading) -> Parameterisation:
    """A parameterisation whose noise-free step is DDIM's, alpha_next * x0 + sigma_next * x1."""

    def ode_step(x: Tensor, prediction: Tensor, levels: Levels) -> Tensor:
        x0, x1 = clean(x, prediction, levels), noise(x, prediction, levels)
        return levels.alpha_next * x0 + levels.sigma_next * x1

    return Parameterisation(clean=clean, noise=noise, ode_step=ode_step)


EPSILON = _diffusion(epsilon_clean, epsilon_noise)
V_PREDICTION = _diffusion(v_clean, v_noise)
SAMPLE = _diffusion(sample_clean, sample_noise)

# What diffusers' schedulers call ``prediction_type``.
DIFFUSION_PREDICTIONS: Mapping[str, Parameterisation] = {
    "epsilon": EPSILON,
    "v_prediction": V_PREDICTION,
    "sample": SAMPLE,
}
