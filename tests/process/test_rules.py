"""Noise rules in numbers: the published tables, the repair at sigma = 1, and DDIM's posterior."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from difalign.core.types import NoiseGrid
from difalign.process.grids import flow_match_grid
from difalign.process.levels import Levels, levels_at
from difalign.process.rules import (
    FLOW_RULES,
    STD_RULES,
    NoiseRule,
    StdRule,
    cps_rule,
    dance_rule,
    ddim_eta_rule,
    flow_grpo_rule,
    wan_rule,
)


def all_levels(grid: NoiseGrid) -> Levels:
    return levels_at(grid, torch.arange(grid.num_steps), torch.zeros(grid.num_steps, 1, dtype=torch.float64))


def constant(value: float, levels: Levels) -> Tensor:
    return torch.full_like(levels.sigma, value)


@pytest.mark.golden
def test_flow_grpo_on_the_sd35_grid() -> None:
    levels = all_levels(flow_match_grid(10, shift=3.0))
    g = flow_grpo_rule(levels, constant(0.7, levels))
    std = g * levels.dt.abs().sqrt()
    expected_g = [3.5057, 3.4351, 2.2726, 1.7185, 1.3592, 1.0881, 0.8612, 0.6524, 0.4344, 0.0664]
    expected_std = [0.70000, 0.74296, 0.53615, 0.44590, 0.39179, 0.35280, 0.31907, 0.28201, 0.22536, 0.00628]
    assert g.flatten().tolist() == pytest.approx(expected_g, abs=6e-5)
    assert std.flatten().tolist() == pytest.approx(expected_std, abs=6e-6)


def test_at_sigma_one_only_the_denominator_is_replaced() -> None:
    levels = all_levels(flow_match_grid(10, shift=3.0))
    g = flow_grpo_rule(levels, constant(0.7, levels))
    assert float(g[0]) == pytest.approx(0.7 / math.sqrt(1 - float(levels.sigma[1])), rel=1e-12)
    assert torch.isfinite(g).all()


def test_dance_is_the_same_at_every_level() -> None:
    levels = all_levels(flow_match_grid(5, shift=3.0))
    assert dance_rule(levels, torch.tensor([[0.3]], dtype=torch.float64)).flatten().tolist() == [0.3] * 5


def test_wan_is_linear_in_sigma_and_scaled_by_the_noise_level() -> None:
    levels = all_levels(flow_match_grid(5, shift=3.0))
    published = wan_rule(levels, constant(1.0, levels))
    torch.testing.assert_close(published, levels.sigma[1] * levels.sigma)
    torch.testing.assert_close(wan_rule(levels, constant(0.5, levels)), 0.5 * published)


def test_wan_starts_from_the_last_level() -> None:
    sigma = torch.tensor([1.0, 0.8, 0.5, 0.2], dtype=torch.float64)
    levels = all_levels(NoiseGrid(alpha=1 - sigma, sigma=sigma, model_time=sigma[:-1]))
    torch.testing.assert_close(wan_rule(levels, constant(1.0, levels)), 0.2 + 0.6 * levels.sigma)


def test_cps_is_a_share_of_the_next_level() -> None:
    levels = all_levels(flow_match_grid(5))
    torch.testing.assert_close(cps_rule(levels, constant(1.0, levels)), levels.sigma_next)
    torch.testing.assert_close(cps_rule(levels, constant(0.7, levels)), levels.sigma_next * math.sin(0.7 * math.pi / 2))


@pytest.mark.parametrize("alpha", [(0.2, 0.5, 0.9, 0.999), (0.1, 0.4, 0.7, 1.0)])
@pytest.mark.parametrize("variance_preserving", [True, False])
def test_ddim_with_eta_one_is_the_forward_posterior(alpha: tuple[float, ...], variance_preserving: bool) -> None:
    """q(x_next | x, x0) from Bayes' rule: precisions of the marginal at x_next and of x given x_next add."""
    kept = torch.tensor(alpha, dtype=torch.float64)
    sigma = (1 - kept.square()).sqrt() if variance_preserving else 1 - kept
    levels = all_levels(NoiseGrid(alpha=kept, sigma=sigma, model_time=kept[:-1]))
    ratio = levels.alpha / levels.alpha_next
    forward = levels.sigma.square() - (ratio * levels.sigma_next).square()
    precision = 1 / levels.sigma_next.square() + ratio.square() / forward
    torch.testing.assert_close(ddim_eta_rule(levels, constant(1.0, levels)), precision.rsqrt())


@pytest.mark.parametrize(("name", "rule"), [*FLOW_RULES.items(), *STD_RULES.items()])
def test_noise_grows_from_zero_with_the_noise_level(name: str, rule: NoiseRule) -> None:
    levels = all_levels(flow_match_grid(5, shift=3.0))
    zero, low, high = (rule(levels, constant(value, levels)) for value in (0.0, 0.4, 0.8))
    noisy = slice(0, 4)  # the last step of a std rule has no noise to give
    assert not zero.any(), name
    assert (low[noisy] > 0).all()
    assert (high[noisy] > low[noisy]).all()


@pytest.mark.parametrize("rule", STD_RULES.values(), ids=STD_RULES)
def test_a_std_rule_never_asks_for_more_noise_than_there_is(rule: StdRule) -> None:
    for shift in (1.0, 3.0, 12.0):
        levels = all_levels(flow_match_grid(50, shift=shift))
        assert (rule(levels, constant(1.0, levels)) <= levels.sigma_next).all()
