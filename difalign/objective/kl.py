"""How far the policy is from the reference at one step: four named measures with one signature."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from difalign.core.gaussian import as_rows, kl_same_std, mean_over_latent
from difalign.core.protocols import Process
from difalign.core.types import GaussianStep, NoiseGrid


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Everything one network says about one step of N rows."""

    step: GaussianStep  # the transition
    prediction: Tensor  # [N, *latent], the network's output
    clean: Tensor  # [N, *latent], its estimate of x0
    step_size: Tensor  # [N], sigma - sigma_next > 0


Divergence = Callable[[Evaluation, Evaluation], Tensor]  # (policy, reference) -> [N]; the reference is data


def evaluate(
    process: Process, grid: NoiseGrid, x: Tensor, prediction: Tensor, *, step: int | Tensor, noise_level: float | Tensor
) -> Evaluation:
    """What ``prediction`` ([N, *latent]) says about step ``step`` (an int or [N]) from x ([N, *latent])."""
    transition = process.transition(x, prediction, grid, step, noise_level)
    sigma = grid.sigma.to(device=x.device, dtype=transition.mean.dtype)
    index = as_rows(step, x, dtype=torch.int64)
    return Evaluation(
        step=transition,
        prediction=prediction.to(transition.mean.dtype),
        clean=process.clean_estimate(x, prediction, grid, step),
        step_size=sigma[index] - sigma[index + 1],
    )


def gaussian(policy: Evaluation, reference: Evaluation) -> Tensor:
    """KL of the two transitions, mean (mu - mu_ref)^2 / (2 std^2), [N]: the true one per latent element.

    Flow-GRPO (arXiv 2505.05470), the closed form after Eq. 9; what TempFlow-GRPO and the Wan script compute.

    Raises:
        ValueError: if a step is deterministic.
    """
    return kl_same_std(policy.step, reference.step.mean.detach())


def flow_grpo(policy: Evaluation, reference: Evaluation) -> Tensor:
    """mean (mu - mu_ref)^2 / (2 g^2) with std = g * sqrt(dt), [N]: ``gaussian`` times the step size.

    What Flow-GRPO's SD3, FLUX and Qwen-Image scripts compute. A beta for it is about ten times the beta for
    ``gaussian`` at ten steps.

    Raises:
        ValueError: if a step is deterministic.
    """
    return gaussian(policy, reference) * policy.step_size


def velocity(policy: Evaluation, reference: Evaluation) -> Tensor:
    """mean (v - v_ref)^2 on the network's outputs, [N]: one scale at every step, needs no noise."""
    return mean_over_latent((policy.prediction - reference.prediction.detach()).square())


def x0(policy: Evaluation, reference: Evaluation) -> Tensor:
    """mean (x0 - x0_ref)^2 on the clean estimates, [N]: ``velocity`` times sigma^2 for a flow."""
    return mean_over_latent((policy.clean - reference.clean.detach()).square())


KL_TYPES: Mapping[str, Divergence] = {"flow_grpo": flow_grpo, "gaussian": gaussian, "velocity": velocity, "x0": x0}
