"""The density of DDIM steps: against torch's Normal, over its own noise, and of states that are stored in less."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from difalign.core.gaussian import log_prob, sample
from difalign.core.types import GaussianStep
from difalign.process.diffusion import DiffusionProcess
from difalign.process.diffusion_grids import ddim_grid
from difalign.process.prediction import DIFFUSION_PREDICTIONS

GRID = ddim_grid(20)
STORAGES = (torch.float32, torch.float16, torch.bfloat16)


def every_step(*shape: int, eta: float = 1.0, prediction_type: str = "epsilon") -> tuple[GaussianStep, Tensor]:
    """All steps of the chain, a row a step, and a draw of each."""
    x, prediction, noise = torch.randn(3, 20, *shape).unbind()
    process = DiffusionProcess().reading(prediction_type)
    step = process.transition(x, prediction, GRID, torch.arange(20), eta)
    return step, sample(step, noise)


@pytest.mark.parametrize("prediction_type", DIFFUSION_PREDICTIONS)
@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_density_is_the_normal_of_torch(eta: float, prediction_type: str) -> None:
    step, x_next = every_step(4, 8, 8, eta=eta, prediction_type=prediction_type)
    theirs = Normal(step.mean, step.std.expand_as(step.mean)).log_prob(x_next).flatten(1).mean(dim=1)
    torch.testing.assert_close(log_prob(step, x_next), theirs, atol=1e-6, rtol=1e-6)


def test_mean_density_over_own_noise_at_every_step() -> None:
    """E[log p] = -1/2 - ln std - ln(2 pi) / 2; its spread over n elements is 1 / sqrt(2 n)."""
    step, x_next = every_step(100_000)
    expected = -0.5 - step.std.flatten().log() - 0.5 * math.log(2 * math.pi)
    assert float((log_prob(step, x_next) - expected).abs().max()) < 4 / math.sqrt(2 * 100_000)


def test_the_density_answers_to_the_prediction_in_closed_form() -> None:
    """d log p / d eps = z / std * d mean / d eps, and 1 / std grows where eta falls."""
    prediction = torch.randn(20, 5, dtype=torch.float64, requires_grad=True)
    x, noise = torch.randn(2, 20, 5, dtype=torch.float64).unbind()
    a, a_next = (v.square()[:, None] for v in (GRID.alpha[:-1], GRID.alpha_next))
    for eta in (1.0, 0.25):
        step = DiffusionProcess().transition(x, prediction, GRID, torch.arange(20), eta)
        x_next = sample(step, noise).detach()
        (gradient,) = torch.autograd.grad(log_prob(step, x_next).sum(), prediction)
        std = eta * ((1 - a_next) / (1 - a) * (1 - a / a_next)).sqrt()
        slope = (1 - a_next - std**2).sqrt() - (a_next / a).sqrt() * (1 - a).sqrt()
        torch.testing.assert_close(gradient, noise / std * slope / 5, rtol=1e-4, atol=0)


# ------------------------------------------------------------------------------------------- what is stored
@pytest.mark.parametrize("storage", STORAGES)
def test_a_stored_state_has_the_same_density_again(storage: torch.dtype) -> None:
    step, x_next = every_step(4, 16, 16)
    stored = x_next.to(storage)
    recorded = log_prob(step, stored)
    assert ((log_prob(step, stored.clone()) - recorded).exp() == 1.0).all()


@pytest.mark.parametrize("storage", STORAGES)
def test_in_another_batch_too(storage: torch.dtype) -> None:
    """Replayed row by row and in another order: a row's density does not depend on its neighbours."""
    x, prediction, noise = torch.randn(3, 20, 4, 16, 16).unbind()
    process, index = DiffusionProcess(), torch.arange(20)
    stored = sample(process.transition(x, prediction, GRID, index, 1.0), noise).to(storage)
    recorded = log_prob(process.transition(x, prediction, GRID, index, 1.0), stored)
    for rows in torch.randperm(20).split(7):
        step = process.transition(x[rows], prediction[rows], GRID, rows, 1.0)
        torch.testing.assert_close(log_prob(step, stored[rows]), recorded[rows], atol=1e-6, rtol=0)


@pytest.mark.golden
@pytest.mark.parametrize("storage", STORAGES[1:])
def test_a_density_taken_before_rounding_would_exceed_the_clip_range(storage: torch.dtype) -> None:
    """Why states are rounded first: at the last step bfloat16 moves every log-density by over ten clip ranges of 1e-4.

    Rounding adds the mean square of its error to the variance: it moves the density down by that over 2 std^2, and by
    as much as 1 / std^2 grows towards the end.
    """
    steps = torch.tensor([0, 18, 19])
    x, prediction, noise = torch.randn(3, 3 * 16, 4, 64, 64).unbind()
    step = DiffusionProcess().transition(x, prediction, GRID, steps.repeat_interleave(16), 1.0)
    exact = sample(step, noise)
    stored = exact.to(storage)
    drift = (log_prob(step, stored) - log_prob(step, exact)).unflatten(0, (3, 16))
    added = (stored.float() - exact).square().flatten(1).mean(dim=1) / (2 * step.std.flatten().square())
    least, most = {torch.float16: (1e-5, 2e-4), torch.bfloat16: (1e-3, 5e-3)}[storage]
    assert least < float(drift[2].abs().mean()) < most
    assert float(drift[0].abs().mean()) < least
    if storage == torch.bfloat16:  # in float16 the error's mean square is below its chance correlation with the noise
        assert bool((drift[2] < 0).all())
        torch.testing.assert_close(drift[2].mean(), -added[32:].mean(), rtol=0.05, atol=0)
        torch.testing.assert_close(drift[1].mean(), -added[16:32].mean(), rtol=0.2, atol=0)
