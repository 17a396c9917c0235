"""Step weights: how much the policy term counts at each step of the chain. They never touch the KL term."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from difalign.core.gaussian import as_rows
from difalign.core.protocols import Process
from difalign.core.types import NoiseGrid


@dataclass(frozen=True, slots=True)
class TrainedSteps:
    """The steps that are trained on, as a weight rule sees them."""

    index: Tensor  # [S] int64, indices of the whole chain
    std: Tensor  # [S] float64, the noise that each injects
    size: Tensor  # [S] float64, sigma - sigma_next > 0


WeightRule = Callable[[TrainedSteps], Tensor]  # -> [S] float64


def uniform(steps: TrainedSteps) -> Tensor:
    """1 at every step, [S] (Flow-GRPO)."""
    return torch.ones_like(steps.std)


def noise_aware(steps: TrainedSteps) -> Tensor:
    """The std of each step divided by the mean over the trained steps, [S].

    TempFlow-GRPO, arXiv 2508.04324, Norm(sigma_t * sqrt(dt)): the gradient of the log-density grows as 1/std, so
    this takes the excess weight from low-noise steps. The released scripts hard-code the normaliser (2.25,
    1.73 and 1.53 for their three models); here it follows from the grid.

    Raises:
        ValueError: if a step injects no noise.
    """
    silent = steps.index[steps.std <= 0].tolist()
    if silent:
        raise ValueError(f"steps {silent} inject no noise and have no weight: train only on stochastic steps")
    return steps.std / steps.std.mean()


def inverse_step_size(steps: TrainedSteps) -> Tensor:
    """1 / (sigma - sigma_next), [S], not normalised: GRPO-Guard's gradient re-weighting (arXiv 2510.22319)."""
    return 1.0 / steps.size


def trained_steps(process: Process, grid: NoiseGrid, index: Tensor, *, noise_level: float | Tensor) -> TrainedSteps:
    """The std and size of the steps ``index``.

    Args:
        process: gives the std, which depends on the levels alone.
        grid: the chain, T steps.
        index: [S] int64 in [0, T).
        noise_level: a float, or [S] in the order of ``index``.
    """
    index = index.cpu()
    probe = torch.zeros(index.numel(), 1, dtype=torch.float64)
    level = as_rows(noise_level, probe, dtype=torch.float64)
    sigma = grid.sigma.double().cpu()
    std = process.transition(probe, probe, grid, index, level).std.flatten()
    return TrainedSteps(index=index, std=std, size=sigma[index] - sigma[index + 1])


def step_weights(
    rule: WeightRule, process: Process, grid: NoiseGrid, trained: Tensor, *, noise_level: float | Tensor
) -> Tensor:
    """The weight of every step of the chain, [T] float32, 0 where it is not trained; index it by an edge's step.

    Args:
        rule: the weight rule.
        process: gives the std.
        grid: the chain, T steps.
        trained: [S] int64 without repeats. A window keeps its indices of the whole chain; the normalisation
            of a rule is over these steps only.
        noise_level: a float, or [S] in the order of ``trained``.

    Raises:
        ValueError: if a step is repeated, lies outside the grid, or has no weight under the rule.
    """
    if trained.unique().numel() != trained.numel():
        raise ValueError(f"trained steps must not repeat, got {trained.tolist()}")
    steps = trained_steps(process, grid, trained, noise_level=noise_level)
    table = torch.zeros(grid.num_steps, dtype=torch.float64)
    table[steps.index] = rule(steps)
    return table.float()


STEP_WEIGHTS: Mapping[str, WeightRule] = {
    "uniform": uniform,
    "noise_aware": noise_aware,
    "inverse_step_size": inverse_step_size,
}
