"""Noise rules: how much noise one step injects, as values that a process is built with.

A *noise rule* gives g, the diffusion coefficient of an SDE (the step's std is g * sqrt|dt|). A *std rule*
gives the step's std itself. Both are elementwise functions of the levels and the noise level.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from difalign.process.levels import Levels

NoiseRule = Callable[[Levels, Tensor], Tensor]  # (levels, noise_level [N, 1, ...]) -> g [N, 1, ...]
StdRule = Callable[[Levels, Tensor], Tensor]  # (levels, noise_level [N, 1, ...]) -> std [N, 1, ...]


def flow_grpo_rule(levels: Levels, noise_level: Tensor) -> Tensor:
    """g = a * sqrt(sigma / (1 - sigma*)), where sigma* is the second level's sigma at sigma == 1.

    Flow-GRPO, arXiv 2505.05470, Eq. 9. The paper's expression diverges at sigma = 1; as in the released
    step function only the denominator is replaced there, the numerator stays 1. Published a = 0.7 (SD3.5).
    """
    finite_sigma = torch.where(levels.sigma == 1, levels.sigma_second, levels.sigma)
    return torch.sqrt(levels.sigma / (1 - finite_sigma)) * noise_level


def dance_rule(levels: Levels, noise_level: Tensor) -> Tensor:
    """g = eta, the same at every level (DanceGRPO, arXiv 2505.07818; published eta = 0.3 for FLUX)."""
    return noise_level.expand_as(levels.sigma)


def wan_rule(levels: Levels, noise_level: Tensor) -> Tensor:
    """g linear in sigma, from the last level's sigma to the second's, times the noise level.

    The rule of Flow-GRPO's released Wan 2.1 step, which has no noise level: 1.0 is the published step.
    """
    return (levels.sigma_last + (levels.sigma_second - levels.sigma_last) * levels.sigma) * noise_level


def cps_rule(levels: Levels, noise_level: Tensor) -> Tensor:
    """std = sigma_next * sin(a * pi / 2) (Flow-CPS, arXiv 2509.05952; published a = 0.8)."""
    return levels.sigma_next * torch.sin(noise_level * (math.pi / 2))


def ddim_eta_rule(levels: Levels, noise_level: Tensor) -> Tensor:
    """std = eta * (sigma_next / sigma) * sqrt(sigma^2 - (alpha / alpha_next)^2 * sigma_next^2).

    The posterior std of q(x_next | x, x0), scaled by eta: DDIM (arXiv 2010.02502, Eq. 16) where
    alpha^2 + sigma^2 = 1, and its counterpart for any other alpha and sigma, rectified flow included.
    """
    forward_variance = levels.sigma.square() - (levels.alpha / levels.alpha_next * levels.sigma_next).square()
    # Never below 0, in floating point either: alpha <= alpha_next and sigma_next <= sigma.
    return noise_level * (levels.sigma_next / levels.sigma) * forward_variance.sqrt()


FLOW_RULES: Mapping[str, NoiseRule] = {"flow_grpo": flow_grpo_rule, "dance": dance_rule, "wan": wan_rule}
STD_RULES: Mapping[str, StdRule] = {"cps": cps_rule, "ddim_eta": ddim_eta_rule}
