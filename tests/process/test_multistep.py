"""DPM-Solver++ (2M): equal to Euler at order 1, a golden step at order 2, and order 2 as measured."""

from __future__ import annotations

import math

import pytest
import torch

from difalign.core.types import NoiseGrid
from difalign.process.levels import levels_at
from difalign.process.multistep import dpm_solver_step, log_snr_ratio
from difalign.process.prediction import euler_step, flow_clean
from tests.process.gaussian_flow import exact_velocity, marginal_std, shifted_grid


@pytest.mark.parametrize("index", range(10))
def test_order_one_is_the_euler_step(index: int) -> None:
    x, v = torch.randn(2, 3, 4, dtype=torch.float64)
    levels = levels_at(shifted_grid(10, shift=3.0), index, x)
    ours = dpm_solver_step(x, flow_clean(x, v, levels), levels, previous_clean=None, step_ratio=None)
    torch.testing.assert_close(ours, euler_step(x, v, levels), atol=1e-14, rtol=0)


@pytest.mark.golden
def test_order_two_in_numbers() -> None:
    sigma = torch.tensor([0.7, 0.6, 0.5], dtype=torch.float64)
    grid = NoiseGrid(alpha=1 - sigma, sigma=sigma, model_time=sigma[:-1])
    x, clean, previous = torch.tensor(
        [[[0.5, -1.0, 2.0]], [[0.1, -0.2, 0.3]], [[0.15, -0.1, 0.2]]], dtype=torch.float64
    )
    before, now = levels_at(grid, 0, x), levels_at(grid, 1, x)
    ours = dpm_solver_step(x, clean, now, previous_clean=previous, step_ratio=log_snr_ratio(before, now))
    assert ours[0].tolist() == pytest.approx((0.4295096287, -0.8743140760, 1.7243140760), abs=1e-9)


def solved_std(num_steps: int) -> float:
    """The std of the Gaussian flow at sigma = 0.1, carried from 0.9: x = mean + 1 std goes to mean + 1 std."""
    sigma = torch.linspace(0.9, 0.1, num_steps + 1, dtype=torch.float64)
    grid = NoiseGrid(alpha=1 - sigma, sigma=sigma, model_time=sigma[:-1])
    x = (grid.alpha[0] * 1.5 + marginal_std(sigma[0])).reshape(1, 1)
    previous_clean = previous_levels = None
    for index in range(num_steps):
        levels = levels_at(grid, index, x)
        clean = flow_clean(x, exact_velocity(x, levels.sigma), levels)
        ratio = None if previous_levels is None else log_snr_ratio(previous_levels, levels)
        x = dpm_solver_step(x, clean, levels, previous_clean=previous_clean, step_ratio=ratio)
        previous_clean, previous_levels = clean, levels
    return float(x) - float(grid.alpha[-1]) * 1.5


def test_convergence_order_is_two() -> None:
    exact = float(marginal_std(torch.tensor(0.1, dtype=torch.float64)))
    errors = [abs(solved_std(n) - exact) for n in (100, 200, 400)]
    assert math.log2(errors[0] / errors[2]) / 2 == pytest.approx(2.0, abs=0.1)


def test_the_last_step_lands_on_the_clean_estimate() -> None:
    x, clean = torch.randn(2, 1, 3, dtype=torch.float64)
    levels = levels_at(shifted_grid(4), 3, x)
    torch.testing.assert_close(dpm_solver_step(x, clean, levels, previous_clean=None, step_ratio=None), clean)


def test_half_of_the_history_is_refused() -> None:
    x = torch.zeros(1, 3)
    levels = levels_at(shifted_grid(4), 1, x)
    with pytest.raises(ValueError, match="neither"):
        dpm_solver_step(x, x, levels, previous_clean=x, step_ratio=None)
