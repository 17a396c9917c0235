"""DDIM at eta = 1 and DDPM's ancestral sampling: one process, save for the last step of a chain that skips levels."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from difalign.core.gaussian import sample
from difalign.process.diffusion import DiffusionProcess
from difalign.process.diffusion_grids import BETA_SCHEDULES, ddim_grid
from difalign.process.prediction import DIFFUSION_PREDICTIONS
from tests.process.diffusers_reference import ddpm_scheduler

EVERY_PREDICTION = pytest.mark.parametrize("prediction_type", DIFFUSION_PREDICTIONS)


def reference(num_steps: int, **options: Any) -> Any:
    """diffusers' DDPM with the posterior's own variance, and its levels laid out."""
    scheduler = ddpm_scheduler(
        beta_start=0.00085, beta_end=0.012, clip_sample=False, variance_type="fixed_small", **options
    )
    scheduler.set_timesteps(num_steps)
    return scheduler


@EVERY_PREDICTION
@pytest.mark.parametrize("betas", BETA_SCHEDULES)
def test_a_chain_through_every_level_is_ddpm_to_the_last_step(betas: str, prediction_type: str) -> None:
    theirs = reference(1000, beta_schedule=betas, prediction_type=prediction_type)
    grid = ddim_grid(1000, steps_offset=0, set_alpha_to_one=True, betas=BETA_SCHEDULES[betas])
    assert torch.equal(grid.model_time, theirs.timesteps)
    x, prediction = torch.randn(2, 1000, 3, 4)
    steps = DiffusionProcess().reading(prediction_type).transition(x, prediction, grid, torch.arange(1000), 1.0)
    noise = torch.randn(1, 3, 4, generator=torch.Generator().manual_seed(5))
    ours = sample(steps, noise)
    expected = [
        theirs.step(prediction[i : i + 1], t, x[i : i + 1], generator=torch.Generator().manual_seed(5)).prev_sample
        for i, t in enumerate(theirs.timesteps.tolist())
    ]
    torch.testing.assert_close(ours, torch.cat(expected), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("betas", BETA_SCHEDULES)
def test_its_variance_is_fixed_small(betas: str) -> None:
    theirs = reference(1000, beta_schedule=betas)
    grid = ddim_grid(1000, steps_offset=0, set_alpha_to_one=True, betas=BETA_SCHEDULES[betas])
    zeros = torch.zeros(1000, 1)
    variance = DiffusionProcess().transition(zeros, zeros, grid, torch.arange(1000), 1.0).std.flatten().square()
    expected = torch.stack([theirs._get_variance(t) for t in range(999, -1, -1)])
    torch.testing.assert_close(variance[:-1], expected[:-1], rtol=1e-5, atol=0)
    assert float(variance[-1]) == 0.0
    assert float(expected[-1]) == pytest.approx(1e-20)  # clamped for its logarithm; DDPM adds no noise there


@EVERY_PREDICTION
@pytest.mark.parametrize("num_steps", [20, 50])
def test_a_chain_that_skips_levels_is_ddpm_but_for_the_last_step(num_steps: int, prediction_type: str) -> None:
    theirs = reference(num_steps, beta_schedule="scaled_linear", steps_offset=1, prediction_type=prediction_type)
    grid, process = ddim_grid(num_steps), DiffusionProcess().reading(prediction_type)
    x, prediction = torch.randn(2, 2, 3, 4, 4)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(5))
    for index, time in enumerate(theirs.timesteps.tolist()):
        source = torch.Generator().manual_seed(5)
        expected = theirs.step(prediction, time, x, generator=source).prev_sample
        ours = sample(process.transition(x, prediction, grid, index, 1.0), noise)
        if index < num_steps - 1:
            torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
        else:  # DDPM lets the last step be deterministic, DDIM does not
            assert float((ours - expected).abs().max()) > 0.01


@pytest.mark.golden
def test_variance_of_the_last_step() -> None:
    """DDPM ends at a share of 1 and so without noise, DDIM at the first share of the schedule."""
    zeros = torch.zeros(1, 1)
    std = DiffusionProcess().transition(zeros, zeros, ddim_grid(20), 19, 1.0).std
    assert float(std.square()) == pytest.approx(4.26e-4, abs=5e-7)
    theirs = reference(20, beta_schedule="scaled_linear", steps_offset=1)
    assert float(theirs._get_variance(1)) == pytest.approx(1e-20)
