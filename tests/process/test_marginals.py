"""Which processes keep the marginals of the flow, how fast they converge, and that a wrong drift is caught.

Data are Gaussian and the velocity exact, so the moments of the discrete chain are propagated without sampling;
sampled chains are then held against these moments and against the flow.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from difalign.core.gaussian import sample
from difalign.core.protocols import Process
from difalign.core.types import GaussianStep, NoiseGrid
from difalign.process.flow import FlowProcess, RenoiseProcess
from difalign.process.levels import levels_at
from difalign.process.prediction import flow_noise
from difalign.process.rules import cps_rule, dance_rule, ddim_eta_rule, flow_grpo_rule, wan_rule
from tests.process.gaussian_flow import (
    DATA_MEAN,
    DATA_STD,
    chain_moments,
    exact_velocity,
    levels_noise,
    marginal_std,
    shifted_grid,
)

ODE = (FlowProcess(), 0.0)
FLOW_GRPO = (FlowProcess(flow_grpo_rule), 0.7)
DANCE = (FlowProcess(dance_rule), 0.3)
WAN = (FlowProcess(wan_rule), 1.0)
CPS = (RenoiseProcess(cps_rule), 0.7)
DDIM = (RenoiseProcess(ddim_eta_rule), 1.0)
PRESERVING = pytest.mark.parametrize(
    ("process", "noise_level"), [ODE, FLOW_GRPO, DANCE, WAN, DDIM], ids=["ode", "flow_grpo", "dance", "wan", "ddim"]
)


def final_std(process: Process, noise_level: float, num_steps: int, shift: float = 1.0) -> float:
    return float(chain_moments(process, noise_level, shifted_grid(num_steps, shift=shift)).std[-1])


# ------------------------------------------------------------------------------------------- exact moments
@PRESERVING
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_the_end_of_the_chain_is_the_data(process: Process, noise_level: float, shift: float) -> None:
    moments = chain_moments(process, noise_level, shifted_grid(1000, shift=shift))
    assert float(moments.std[-1]) == pytest.approx(DATA_STD, abs=0.005)
    assert float(moments.mean[-1]) == pytest.approx(DATA_MEAN, abs=1e-9)


@PRESERVING
def test_every_level_has_the_marginal_of_the_flow(process: Process, noise_level: float) -> None:
    grid = shifted_grid(4000)
    moments = chain_moments(process, noise_level, grid)
    behind_the_start = slice(40, None)  # Flow-GRPO's first step is off by a fixed amount, tested below
    error = (moments.std - marginal_std(grid.sigma))[behind_the_start].abs().max()
    assert error < 0.02
    torch.testing.assert_close(moments.mean, grid.alpha * DATA_MEAN, atol=1e-9, rtol=0)


@pytest.mark.golden
@pytest.mark.parametrize(
    ("case", "shift", "expected"),
    [
        (ODE, 1, (0.431, 0.482, 0.496, 0.501)),
        (FLOW_GRPO, 1, (0.479, 0.497, 0.500, 0.501)),
        (DANCE, 1, (0.441, 0.485, 0.497, 0.500)),
        (CPS, 1, (0.370, 0.407, 0.421, 0.424)),
        (ODE, 3, (0.369, 0.464, 0.493, 0.499)),
        (FLOW_GRPO, 3, (0.420, 0.479, 0.496, 0.500)),
        (DANCE, 3, (0.377, 0.468, 0.494, 0.499)),
        (CPS, 3, (0.328, 0.391, 0.416, 0.423)),
    ],
)
def test_stds_of_sampled_reference_chains(
    case: tuple[Process, float], shift: float, expected: tuple[float, ...]
) -> None:
    # The references are sampled (200 000 rows): standard error 0.0008 or less, rounded to 0.001.
    stds = [final_std(*case, num_steps, shift) for num_steps in (10, 40, 200, 1000)]
    assert stds == pytest.approx(expected, abs=0.002)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_cps_shrinks_the_data(shift: float) -> None:
    """Flow-CPS keeps the noise level of a state, not the marginal: its limit is narrower than the data."""
    for num_steps in (1000, 4000):
        assert 0.41 < final_std(*CPS, num_steps, shift) < DATA_STD - 0.03


# --------------------------------------------------------------------------------------- convergence order
def order(errors: list[float]) -> float:
    """The mean exponent p of error ~ n^-p over errors at n, 2n, 4n, ..."""
    return math.log2(errors[0] / errors[-1]) / (len(errors) - 1)


@pytest.mark.parametrize("case", [ODE, DANCE, WAN, DDIM], ids=["ode", "dance", "wan", "ddim"])
def test_weak_order_is_one(case: tuple[Process, float]) -> None:
    errors = [abs(final_std(*case, n) - DATA_STD) for n in (400, 800, 1600, 3200)]
    assert order(errors) == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize("case", [ODE, FLOW_GRPO, DANCE, WAN, DDIM], ids=["ode", "flow_grpo", "dance", "wan", "ddim"])
def test_weak_order_is_one_from_an_interior_level(case: tuple[Process, float]) -> None:
    grids = [shifted_grid(n, first=0.9) for n in (400, 800, 1600, 3200)]
    errors = [abs(float(chain_moments(*case, grid).std[-1]) - DATA_STD) for grid in grids]
    assert order(errors) == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize("num_steps", [10, 100, 1000])
def test_flow_grpo_first_step_is_off_by_the_same_amount_at_any_number_of_steps(num_steps: int) -> None:
    """At sigma = 1 the released rule injects std = a however small the step: variance 1 + a^4 / 4, not 1.

    Later steps forget it, as n^-(a^2), which is why the released rule converges more slowly than order 1 for
    a < 1.
    """
    process, a = FLOW_GRPO
    grid = shifted_grid(num_steps)
    x, noise_level = torch.tensor([[0.0], [1.0]], dtype=torch.float64), a
    velocity = torch.zeros_like(x)  # the noise alone: a state that is pure noise should stay so
    step = process.transition(x, velocity, grid, 0, noise_level)
    slope = float(step.mean[1] - step.mean[0])
    assert float(step.std[0]) == pytest.approx(a, abs=1e-12)
    assert slope**2 + float(step.std[0]) ** 2 == pytest.approx(1 + a**4 / 4, abs=1e-12)


def test_flow_grpo_forgets_its_first_step() -> None:
    process, a = FLOW_GRPO
    errors = [final_std(process, a, n) - DATA_STD for n in (1600, 6400, 25600)]
    rates = [math.log(early / late, 4) for early, late in itertools.pairwise(errors)]
    assert rates[0] < rates[1] < a**2
    assert rates[1] == pytest.approx(a**2, abs=0.06)


# ---------------------------------------------------------------------------------------- sampled chains
def sampled_std_and_mean(process: Process, grid: NoiseGrid, noise_level: float, rows: int) -> tuple[float, float]:
    x = torch.randn(rows, 1, dtype=torch.float64)
    for i, level in enumerate(levels_noise(grid, noise_level).tolist()):
        step = process.transition(x, exact_velocity(x, grid.sigma[i]), grid, i, level)
        x = sample(step, torch.randn_like(x))
    return float(x.std()), float(x.mean())


@PRESERVING
def test_sampled_marginals_match_the_ode(process: Process, noise_level: float) -> None:
    rows, grid = 40_000, shifted_grid(200)
    std, mean = sampled_std_and_mean(process, grid, noise_level, rows)
    exact, ode = (chain_moments(*case, grid) for case in ((process, noise_level), ODE))
    std_error, mean_error = DATA_STD / math.sqrt(2 * rows), DATA_STD / math.sqrt(rows)
    assert std == pytest.approx(float(exact.std[-1]), abs=4 * std_error)
    assert mean == pytest.approx(DATA_MEAN, abs=4 * mean_error)
    # Against the ODE itself: 4 standard errors and what either chain misses of the flow at this step size.
    bound = sum(abs(float(moments.std[-1]) - DATA_STD) for moments in (exact, ode))
    assert std == pytest.approx(float(ode.std[-1]), abs=4 * std_error + bound)


# ----------------------------------------------------------------------------------------- wrong drifts
@dataclass(frozen=True)
class WrongDrift:
    """The flow SDE with its score term multiplied by ``factor``: 1 is right, -1 flipped, 0 left out."""

    factor: float

    def transition(
        self, x: Tensor, prediction: Tensor, grid: NoiseGrid, step: int | Tensor, noise_level: float | Tensor
    ) -> GaussianStep:
        right = FlowProcess().transition(x, prediction, grid, step, noise_level)
        euler = FlowProcess().transition(x, prediction, grid, step, 0.0)
        return GaussianStep(mean=euler.mean + self.factor * (right.mean - euler.mean), std=right.std)

    clean_estimate = FlowProcess().clean_estimate
    noised = FlowProcess().noised


@pytest.mark.golden
@pytest.mark.parametrize(("factor", "expected", "tolerance"), [(1, 0.4995, 0.002), (-1, 4.10, 0.03), (0, 1.08, 0.005)])
def test_a_wrong_score_term_is_caught(factor: float, expected: float, tolerance: float) -> None:
    std = final_std(WrongDrift(factor), 0.7, 200)
    assert std == pytest.approx(expected, abs=tolerance)
    assert (abs(std - DATA_STD) < 0.005) == (factor == 1)


# --------------------------------------------------------------------------------------- point-mass data
@pytest.mark.parametrize(("num_steps", "shift"), [(10, 1.0), (40, 3.0)])
def test_cps_keeps_the_noise_level_of_a_point_mass(num_steps: int, shift: float) -> None:
    grid = shifted_grid(num_steps, shift=shift)
    torch.testing.assert_close(chain_moments(*CPS, grid, std=0.0).std, grid.sigma, atol=1e-12, rtol=0)


@pytest.mark.golden
@pytest.mark.parametrize(
    ("num_steps", "shift", "ideal", "flow", "dance"),
    [
        (10, 1, 0.100, 0.138, 0.1255),
        (40, 1, 0.025, 0.033, 0.0475),
        (10, 3, 0.250, 0.323, 0.2665),
        (40, 3, 0.0714, 0.0922, 0.0932),
    ],
)
def test_the_flow_sde_exceeds_the_noise_level_of_a_point_mass(
    num_steps: int, shift: float, ideal: float, flow: float, dance: float
) -> None:
    grid = shifted_grid(num_steps, shift=shift)
    assert float(grid.sigma[-2]) == pytest.approx(ideal, abs=1e-4)
    assert float(chain_moments(*FLOW_GRPO, grid, std=0.0).std[-2]) == pytest.approx(flow, rel=0.005)
    assert float(chain_moments(*DANCE, grid, std=0.0).std[-2]) == pytest.approx(dance, rel=0.005)


def test_one_flow_sde_step_from_a_point_mass_in_closed_form() -> None:
    """Var = sigma'^2 + g^2 dt^2 / sigma + (g^2 dt)^2 / (4 sigma^2) (Flow-CPS, arXiv 2509.05952, Eq. 10)."""
    grid = shifted_grid(10)
    x = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    velocity = exact_velocity(x, grid.sigma[4], std=0.0)
    step = FlowProcess().transition(x, velocity, grid, 4, 0.7)
    sigma, sigma_next, size = 0.6, 0.5, 0.1
    g_squared = 0.49 * sigma / (1 - sigma)
    slope = float(step.mean[1] - step.mean[0])
    expected = sigma_next**2 + g_squared * size**2 / sigma + (g_squared * size) ** 2 / (4 * sigma**2)
    assert (slope * sigma) ** 2 + float(step.std[0]) ** 2 == pytest.approx(expected, rel=1e-12)
    assert float(flow_noise(x, velocity, levels_at(grid, 4, x))[1] * sigma) == pytest.approx(1 - 0.4 * DATA_MEAN)
