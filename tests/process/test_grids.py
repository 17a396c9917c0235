"""Grids equal diffusers' to the last bit, from the scheduler and from plain values."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from difalign.core.types import NoiseGrid
from difalign.process.grids import (
    TimeShift,
    dynamic_mu,
    exponential_shift,
    flow_match_grid,
    grid_from_scheduler,
    linear_shift,
    uniform_sigmas,
)
from tests.process.diffusers_reference import flow_scheduler

STEPS = [1, 2, 4, 6, 10, 16, 20, 28, 40, 50]
QWEN_MU = dynamic_mu(1024, base_sequence_length=256, max_sequence_length=8192, base_shift=0.5, max_shift=0.9)


def assert_same(grid: NoiseGrid, reference: Any) -> None:
    assert torch.equal(grid.sigma, reference.sigmas)
    assert torch.equal(grid.model_time, reference.timesteps)
    assert torch.equal(grid.alpha, 1 - reference.sigmas)
    assert grid.sigma.dtype == grid.model_time.dtype == torch.float32


@pytest.mark.parametrize("num_steps", STEPS)
@pytest.mark.parametrize("shift", [1.0, 1.5, 3.0, 5.0, 7.0, 12.0])
def test_static_shift_equals_diffusers_to_the_last_bit(num_steps: int, shift: float) -> None:
    reference = flow_scheduler(shift=shift)
    reference.set_timesteps(num_steps)
    assert_same(flow_match_grid(num_steps, shift=shift), reference)
    assert_same(grid_from_scheduler(flow_scheduler(shift=shift), num_steps), reference)


@pytest.mark.parametrize("num_steps", STEPS)
@pytest.mark.parametrize("mu", [0.5, 0.63, QWEN_MU, 1.15])
@pytest.mark.parametrize(("kind", "time_shift"), [("exponential", exponential_shift), ("linear", linear_shift)])
@pytest.mark.parametrize("own_levels", [True, False])
def test_dynamic_shift_equals_diffusers_to_the_last_bit(
    num_steps: int, mu: float, kind: str, time_shift: TimeShift, own_levels: bool
) -> None:
    reference = flow_scheduler(use_dynamic_shifting=True, time_shift_type=kind, shift=3.0)
    untouched = flow_scheduler(use_dynamic_shifting=True, time_shift_type=kind, shift=3.0)
    sigmas = uniform_sigmas(num_steps) if own_levels else None
    reference.set_timesteps(num_steps, sigmas=sigmas, mu=mu)
    assert_same(flow_match_grid(num_steps, mu=mu, time_shift=time_shift, sigmas=sigmas), reference)
    assert_same(grid_from_scheduler(untouched, num_steps, mu=mu, sigmas=sigmas), reference)


@pytest.mark.parametrize("num_steps", STEPS[1:])
@pytest.mark.parametrize("terminal", [0.02, 0.1])
def test_shift_terminal_equals_diffusers_to_the_last_bit(num_steps: int, terminal: float) -> None:
    reference = flow_scheduler(use_dynamic_shifting=True, shift_terminal=terminal)
    reference.set_timesteps(num_steps, sigmas=uniform_sigmas(num_steps), mu=QWEN_MU)
    ours = flow_match_grid(num_steps, mu=QWEN_MU, shift_terminal=terminal, sigmas=uniform_sigmas(num_steps))
    assert_same(ours, reference)
    assert float(ours.sigma[-2]) == pytest.approx(terminal, abs=1e-6)


@pytest.mark.golden
def test_published_grids() -> None:
    sd35 = [1, 0.96013, 0.91335, 0.85769, 0.79037, 0.70728, 0.60215, 0.46488, 0.27805, 0.00893, 0]
    assert flow_match_grid(10, shift=3.0).sigma.tolist() == pytest.approx(sd35, abs=6e-6)
    flux_1024 = [1, 0.966, 0.9266, 0.8805, 0.8257, 0.7595, 0.678, 0.5751, 0.4412, 0.2598, 0]
    grid = flow_match_grid(10, mu=dynamic_mu(4096), sigmas=uniform_sigmas(10))
    assert grid.sigma.tolist() == pytest.approx(flux_1024, abs=6e-5)
    flux_512 = [1, 0.9037, 0.7897, 0.6525, 0.4842, 0.273, 0]
    grid = flow_match_grid(6, mu=dynamic_mu(1024), sigmas=uniform_sigmas(6))
    assert grid.sigma.tolist() == pytest.approx(flux_512, abs=6e-5)
    qwen_512 = [1, 0.929, 0.8515, 0.7666, 0.6733, 0.5701, 0.4555, 0.3274, 0.1833, 0.02, 0]
    grid = flow_match_grid(10, mu=QWEN_MU, shift_terminal=0.02, sigmas=uniform_sigmas(10))
    assert grid.sigma.tolist() == pytest.approx(qwen_512, abs=6e-5)


@pytest.mark.golden
def test_published_dynamic_shifts() -> None:
    assert dynamic_mu(4096) == pytest.approx(1.15)
    assert dynamic_mu(256) == pytest.approx(0.5)
    assert dynamic_mu(1024) == pytest.approx(0.63, abs=1e-9)
    assert pytest.approx(0.5387, abs=5e-5) == QWEN_MU


@pytest.mark.parametrize("length", [256, 1024, 1536, 4096, 6889])
def test_dynamic_mu_equals_diffusers(length: int) -> None:
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    assert dynamic_mu(length) == calculate_shift(length)


def test_reading_a_scheduler_leaves_it_alone() -> None:
    used = flow_scheduler(shift=3.0)
    used.set_timesteps(7)
    before = used.timesteps.clone()
    assert grid_from_scheduler(used, 10).num_steps == 10
    assert torch.equal(used.timesteps, before)


@pytest.mark.parametrize("num_steps", [0, -3])
def test_a_chain_needs_a_step(num_steps: int) -> None:
    with pytest.raises(ValueError, match="num_steps"):
        flow_match_grid(num_steps)
    with pytest.raises(ValueError, match="num_steps"):
        grid_from_scheduler(flow_scheduler(), num_steps)


def test_contradictions_are_refused() -> None:
    with pytest.raises(ValueError, match="not both"):
        flow_match_grid(4, shift=3.0, mu=1.0)
    with pytest.raises(ValueError, match="num_steps = 4"):
        flow_match_grid(4, sigmas=[1.0, 0.5])
    with pytest.raises(ValueError, match="must fall"):
        flow_match_grid(2, sigmas=[0.5, 1.0])
    with pytest.raises(ValueError, match="must fall"):
        grid_from_scheduler(flow_scheduler(invert_sigmas=True), 4)
