"""How a state of a diffusion model moves one level: DDIM, from its ODE (eta = 0) to ancestral sampling (eta = 1).

Notation: a = alpha^2 is the signal's share of the variance (``alphas_cumprod``), x = sqrt(a) x0 + sqrt(1 - a) x1.
The operations stand in the order of diffusers' ``DDIMScheduler.step``, so that on a CPU in float32 mean and std equal
its own to the last bit. In exact arithmetic the step is ``flow.renoise_step`` under ``rules.ddim_eta_rule``, whose
order keeps the ODE exact for every rule but loses up to 1e-5 of the std where two levels lie close.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from difalign.core.gaussian import as_rows, broadcast_rows
from difalign.core.types import GaussianStep, NoiseGrid
from difalign.process.flow import noise_to_level
from difalign.process.levels import Levels, align, noise_rows
from difalign.process.prediction import DIFFUSION_PREDICTIONS, EPSILON, Parameterisation

# A std below this is taken for 0: 1 / std^2 in the log-density would drown every other step of the chain. Latents
# have unit variance, so what such a step would add is not seen.
LEAST_STD = 1e-4


@final
@dataclass(frozen=True, slots=True)
class DiffusionProcess:
    """DDIM (arXiv 2010.02502); the noise level is its eta: 0 is the ODE, 1 is DDPM's posterior (arXiv 2006.11239)."""

    parameterisation: Parameterisation = EPSILON

    def reading(self, prediction_type: str) -> DiffusionProcess:
        """The same process for a network that predicts ``prediction_type``.

        Raises:
            ValueError: if diffusers has no such prediction type.
        """
        if prediction_type not in DIFFUSION_PREDICTIONS:
            raise ValueError(
                f"prediction_type must be one of {', '.join(DIFFUSION_PREDICTIONS)}, got {prediction_type!r}"
            )
        return replace(self, parameterisation=DIFFUSION_PREDICTIONS[prediction_type])

    def transition(
        self, x: Tensor, prediction: Tensor, grid: NoiseGrid, step: int | Tensor, noise_level: float | Tensor
    ) -> GaussianStep:
        """The distribution of the level that ``step`` ends at, given x at the level it starts at.

        ``mean = sqrt(a') x0 + sqrt(1 - a' - std^2) x1`` and ``std = eta sqrt((1 - a') / (1 - a) (1 - a / a'))``
        (DDIM, Eq. 12 and 16). A std below ``LEAST_STD`` is 0: such a step is deterministic and has no density. That
        is the last step of a chain that ends at a' = 1, and of one whose last timestep is 0.

        Args:
            x: [N, *latent] of any rank; half types are calculated in float32, float64 stays.
            prediction: the network's output, [N, *latent].
            grid: the chain, alpha^2 + sigma^2 = 1.
            step: an int or [N] int64.
            noise_level: eta, a float or [N] in [0, 1]; rows may differ.

        Raises:
            ValueError: if the step is outside the grid or eta outside [0, 1].
        """
        x, prediction, levels = align(x, prediction, grid, step)
        eta = noise_rows(noise_level, x, maximum=1.0)
        kept, kept_next = _kept_shares(grid, step, x)
        levels = _with_roots(levels, kept, kept_next)
        variance = (1 - kept_next) / (1 - kept) * (1 - kept / kept_next)
        std = eta * variance.sqrt()
        std = torch.where(std < LEAST_STD, torch.zeros_like(std), std)
        clean = self.parameterisation.clean(x, prediction, levels)
        noise = self.parameterisation.noise(x, prediction, levels)
        # From pure noise (a = 0) under eta = 1 what is left is 0, or by rounding less, whose root diffusers takes.
        direction = (1 - kept_next - std.square()).clamp(min=0).sqrt() * noise
        return GaussianStep(mean=levels.alpha_next * clean + direction, std=std)

    def clean_estimate(self, x: Tensor, prediction: Tensor, grid: NoiseGrid, step: int | Tensor) -> Tensor:
        """The estimate of x0, [N, *latent]."""
        x, prediction, levels = align(x, prediction, grid, step)
        levels = _with_roots(levels, *_kept_shares(grid, step, x))
        return self.parameterisation.clean(x, prediction, levels)

    def noised(self, clean: Tensor, noise: Tensor, grid: NoiseGrid, step: int | Tensor) -> Tensor:
        """alpha * x0 + sigma * noise at level ``step``, [N, *latent]."""
        return noise_to_level(clean, noise, grid, step)


DIFFUSION_RULES: Mapping[str, DiffusionProcess] = {"ddim": DiffusionProcess()}


def _kept_shares(grid: NoiseGrid, step: int | Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """a and a' of every row, [N, 1, ...]; squared before they are rounded, which gives the schedule's own numbers."""
    index = as_rows(step, x, dtype=torch.int64)

    def shares(alpha: Tensor) -> Tensor:
        return broadcast_rows(alpha.square().to(device=x.device, dtype=x.dtype)[index], x)

    return shares(grid.alpha), shares(grid.alpha_next)


def _with_roots(levels: Levels, kept: Tensor, kept_next: Tensor) -> Levels:
    """The levels with roots taken here: float32 roots of float32 shares, whose last bit differs from rounded ones."""
    return replace(
        levels,
        alpha=kept.sqrt(),
        sigma=(1 - kept).sqrt(),
        alpha_next=kept_next.sqrt(),
        sigma_next=(1 - kept_next).sqrt(),
    )
