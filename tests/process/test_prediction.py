"""The flow parameterisation: its three readings of a velocity agree with one another and with the path."""

from __future__ import annotations

import pytest
import torch

from difalign.process.levels import levels_at
from difalign.process.prediction import FLOW
from tests.process.gaussian_flow import shifted_grid


@pytest.mark.parametrize("index", range(6))
def test_estimates_rebuild_the_state_and_the_velocity(index: int) -> None:
    x, v = torch.randn(2, 3, 4, dtype=torch.float64)
    levels = levels_at(shifted_grid(6, shift=3.0), index, x)
    clean, noise = FLOW.clean(x, v, levels), FLOW.noise(x, v, levels)
    torch.testing.assert_close(levels.alpha * clean + levels.sigma * noise, x, atol=1e-14, rtol=0)
    torch.testing.assert_close(noise - clean, v, atol=1e-14, rtol=0)


@pytest.mark.parametrize("index", range(6))
def test_the_ode_step_keeps_both_estimates(index: int) -> None:
    x, v = torch.randn(2, 3, 4, dtype=torch.float64)
    levels = levels_at(shifted_grid(6, shift=3.0), index, x)
    clean, noise = FLOW.clean(x, v, levels), FLOW.noise(x, v, levels)
    torch.testing.assert_close(
        FLOW.ode_step(x, v, levels), levels.alpha_next * clean + levels.sigma_next * noise, atol=1e-14, rtol=0
    )
