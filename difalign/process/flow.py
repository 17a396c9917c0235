"""How a state moves one level: the SDE step of rectified flow, and re-noising of the clean estimate.

Notation: sigma falls, dt = sigma_next - sigma < 0, x0 is data, x1 is noise, v = x1 - x0. Two step functions
and the rules of ``difalign.process.rules`` cover Flow-GRPO, DanceGRPO, Flow-GRPO's Wan step, Flow-CPS and DDIM.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Tensor

from difalign.core.types import GaussianStep, NoiseGrid
from difalign.process.levels import Levels, align, noise_rows
from difalign.process.prediction import FLOW, Parameterisation, flow_clean, flow_noise
from difalign.process.rules import NoiseRule, StdRule, cps_rule, flow_grpo_rule


def flow_sde_step(x: Tensor, velocity: Tensor, levels: Levels, g: Tensor) -> GaussianStep:
    """One Euler-Maruyama step of the SDE that shares its marginals with the ODE dx = v dt.

    ``mean = x + (v + g^2 / 2 * x1 / sigma) * dt`` and ``std = g * sqrt|dt|``, since the score of a rectified
    flow is -x1 / sigma (Flow-GRPO, arXiv 2505.05470, Eq. 9). With g = 0 the mean is the Euler step, bit for bit.

    Args:
        x: [N, *latent], float32 or float64.
        velocity: [N, *latent], in the dtype of x.
        levels: the levels on both sides, [N, 1, ...]; sigma > 0.
        g: diffusion coefficient, [N, 1, ...].
    """
    dt = levels.dt
    score_drift = 0.5 * g.square() * flow_noise(x, velocity, levels) / levels.sigma
    return GaussianStep(mean=x + (velocity + score_drift) * dt, std=g * dt.abs().sqrt())


def renoise_step(ode_next: Tensor, noise_estimate: Tensor, sigma_next: Tensor, std: Tensor) -> GaussianStep:
    """Go to the clean estimate and noise it again: part of the noise is the estimate's, part is fresh.

    ``mean = alpha_next * x0 + sqrt(sigma_next^2 - std^2) * x1`` (DDIM, arXiv 2010.02502, Eq. 12; Flow-CPS,
    arXiv 2509.05952). Written as the noise-free step plus a correction that is exactly 0 at std = 0, so that
    the deterministic case is the ODE step bit for bit.

    Args:
        ode_next: alpha_next * x0 + sigma_next * x1, [N, *latent].
        noise_estimate: x1, [N, *latent].
        sigma_next: [N, 1, ...].
        std: [N, 1, ...], at most sigma_next.
    """
    kept_noise = (sigma_next.square() - std.square()).sqrt()
    return GaussianStep(mean=ode_next + (kept_noise - sigma_next) * noise_estimate, std=std)


@final
@dataclass(frozen=True, slots=True)
class FlowProcess:
    """Rectified flow under an SDE whose noise follows ``rule``; noise level 0 is the ODE."""

    rule: NoiseRule = flow_grpo_rule

    def transition(
        self, x: Tensor, prediction: Tensor, grid: NoiseGrid, step: int | Tensor, noise_level: float | Tensor
    ) -> GaussianStep:
        """The distribution of level step + 1 given x at level step.

        Args:
            x: [N, *latent] of any rank; half types are calculated in float32, float64 stays.
            prediction: the velocity, [N, *latent].
            grid: the chain.
            step: an int or [N] int64.
            noise_level: a float or [N], in the unit of the rule; rows may differ.

        Raises:
            ValueError: if the step is outside the grid or the noise level is negative.
        """
        x, prediction, levels = align(x, prediction, grid, step)
        g = self.rule(levels, noise_rows(noise_level, x, maximum=float("inf")))
        return flow_sde_step(x, prediction, levels, g)

    def clean_estimate(self, x: Tensor, prediction: Tensor, grid: NoiseGrid, step: int | Tensor) -> Tensor:
        """The estimate of x0, x - sigma * v, [N, *latent]."""
        return flow_clean(*align(x, prediction, grid, step))

    def noised(self, clean: Tensor, noise: Tensor, grid: NoiseGrid, step: int | Tensor) -> Tensor:
        """(1 - sigma) * x0 + sigma * noise at level ``step``, [N, *latent]."""
        return noise_to_level(clean, noise, grid, step)


@final
@dataclass(frozen=True, slots=True)
class RenoiseProcess:
    """A process that re-noises the clean estimate with a std from ``std_rule``; noise level in [0, 1].

    ``parameterisation`` says what the network predicts, so that one step function serves flow and diffusion.
    """

    std_rule: StdRule = cps_rule
    parameterisation: Parameterisation = FLOW

    def transition(
        self, x: Tensor, prediction: Tensor, grid: NoiseGrid, step: int | Tensor, noise_level: float | Tensor
    ) -> GaussianStep:
        """The distribution of level step + 1 given x at level step.

        The last step of a grid that ends at sigma = 0 is deterministic at every noise level: there is no
        noise left to replace.

        Args:
            x: [N, *latent] of any rank; half types are calculated in float32, float64 stays.
            prediction: the network's output, [N, *latent].
            grid: the chain.
            step: an int or [N] int64.
            noise_level: a float or [N] in [0, 1]; rows may differ.

        Raises:
            ValueError: if the step is outside the grid or the noise level outside [0, 1].
        """
        x, prediction, levels = align(x, prediction, grid, step)
        std = self.std_rule(levels, noise_rows(noise_level, x, maximum=1.0))
        ode_next = self.parameterisation.ode_step(x, prediction, levels)
        noise_estimate = self.parameterisation.noise(x, prediction, levels)
        return renoise_step(ode_next, noise_estimate, levels.sigma_next, std)

    def clean_estimate(self, x: Tensor, prediction: Tensor, grid: NoiseGrid, step: int | Tensor) -> Tensor:
        """The estimate of x0, [N, *latent]."""
        return self.parameterisation.clean(*align(x, prediction, grid, step))

    def noised(self, clean: Tensor, noise: Tensor, grid: NoiseGrid, step: int | Tensor) -> Tensor:
        """alpha * x0 + sigma * noise at level ``step``, [N, *latent]."""
        return noise_to_level(clean, noise, grid, step)


def noise_to_level(clean: Tensor, noise: Tensor, grid: NoiseGrid, level: int | Tensor) -> Tensor:
    """alpha * x0 + sigma * noise at level ``level`` of the grid (an int or [N] int64 in [0, T)), [N, *latent]."""
    clean, noise, levels = align(clean, noise, grid, level)
    return levels.alpha * clean + levels.sigma * noise
