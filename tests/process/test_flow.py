"""The two step functions: golden numbers, equality with Euler and diffusers, and independence of rows."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from difalign.core.gaussian import LOG_PROBS, broadcast_rows, log_prob, sample
from difalign.core.protocols import Process
from difalign.core.types import NoiseGrid
from difalign.process.flow import FlowProcess, RenoiseProcess, renoise_step
from difalign.process.grids import flow_match_grid
from difalign.process.levels import levels_at
from difalign.process.prediction import Parameterisation, flow_clean, flow_noise
from difalign.process.rules import StdRule, cps_rule, dance_rule, ddim_eta_rule, flow_grpo_rule, wan_rule
from tests.process.diffusers_reference import ddim_scheduler, flow_scheduler

SIGMAS = (1.0, 0.9, 0.8, 0.7, 0.0)
PROCESSES = {
    "flow_grpo": FlowProcess(flow_grpo_rule),
    "dance": FlowProcess(dance_rule),
    "wan": FlowProcess(wan_rule),
    "cps": RenoiseProcess(cps_rule),
    "ddim": RenoiseProcess(ddim_eta_rule),
}
EVERY_PROCESS = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
LATENT_SHAPES = [(7, 3), (3, 4, 5), (2, 3, 4, 5)]  # packed tokens, image, video


def grid_of(*sigmas: float, dtype: torch.dtype = torch.float64) -> NoiseGrid:
    sigma = torch.tensor(sigmas, dtype=dtype)
    return NoiseGrid(alpha=1 - sigma, sigma=sigma, model_time=1000 * sigma[:-1])


def draw(*shape: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    return torch.randn(*shape, dtype=dtype), torch.randn(*shape, dtype=dtype)


# ----------------------------------------------------------------------------------------- golden numbers
X = (0.5, -1.0, 2.0)
V = (1.0, 0.25, -0.75)
NOISE = (0.3, -1.2, 0.7)
GOLDEN = {  # process, step, noise level, std, mean, sample, log-density kind, log-density
    "flow": (
        FlowProcess(flow_grpo_rule),
        2,
        0.7,
        0.4427188724,
        (0.31425, -0.908625, 1.848375),
        (0.4470656617, -1.4398876469, 2.1582782107),
        "gaussian",
        -0.44078489,
    ),
    "flow at sigma 1": (
        FlowProcess(flow_grpo_rule),
        0,
        0.7,
        0.7,
        (0.2775, -0.78, 1.585),
        (0.4875, -1.62, 2.075),
        "gaussian",
        -0.8989302559,
    ),
    "dance": (
        FlowProcess(dance_rule),
        2,
        0.3,
        0.0948683298,
        (0.3960625, -1.01965625, 2.06459375),
        (0.4245229989, -1.1334982458, 2.1310015809),
        "gaussian",
        1.099660151,
    ),
    "cps": (
        RenoiseProcess(cps_rule),
        2,
        0.7,
        0.6237045669,
        (0.1324553449, -0.6619036823, 1.3679176972),
        (0.319566715, -1.4103491626, 1.804510894),
        "squared_error",
        -0.2619316405,
    ),
}


@pytest.mark.golden
@pytest.mark.parametrize("name", GOLDEN)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_one_step_in_numbers(name: str, dtype: torch.dtype, tolerance: float) -> None:
    process, index, level, std, mean, x_next, kind, density = GOLDEN[name]
    x, v, noise = (torch.tensor([row], dtype=dtype) for row in (X, V, NOISE))
    step = process.transition(x, v, grid_of(*SIGMAS, dtype=dtype), index, level)
    drawn = sample(step, noise)
    assert step.mean.dtype == dtype
    assert float(step.std) == pytest.approx(std, abs=tolerance)
    assert step.mean[0].tolist() == pytest.approx(mean, abs=tolerance)
    assert drawn[0].tolist() == pytest.approx(x_next, abs=tolerance)
    assert float(LOG_PROBS[kind](step, drawn)) == pytest.approx(density, abs=tolerance)


@pytest.mark.golden
def test_a_small_change_of_velocity_in_numbers() -> None:
    grid = grid_of(*SIGMAS)
    x, v, noise = (torch.tensor([row], dtype=torch.float64) for row in (X, V, NOISE))
    drawn = sample(FlowProcess().transition(x, v, grid, 2, 0.7), noise)
    changed = log_prob(FlowProcess().transition(x, v + 0.01, grid, 2, 0.7), drawn)
    old = log_prob(FlowProcess().transition(x, v, grid, 2, 0.7), drawn)
    assert float(changed) == pytest.approx(-0.4406013663, abs=1e-9)
    assert float(changed - old) == pytest.approx(1.8352374e-4, abs=1e-11)
    assert float((changed - old).exp()) == pytest.approx(1.0001835406, abs=1e-9)


# ------------------------------------------------------------------------------------------- no noise: ODE
@EVERY_PROCESS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("index", range(10))
def test_without_noise_the_mean_is_the_euler_step_bit_for_bit(process: Process, dtype: torch.dtype, index: int) -> None:
    grid = flow_match_grid(10, shift=3.0)
    x, v = draw(3, 4, 5, 6, dtype=dtype)
    step = process.transition(x, v, grid, index, 0.0)
    sigma = grid.sigma.to(dtype)
    assert torch.equal(step.mean, x + v * (sigma[index + 1] - sigma[index]))
    assert not step.std.any()


@EVERY_PROCESS
def test_a_noise_free_rollout_is_the_diffusers_rollout_bit_for_bit(process: Process) -> None:
    scheduler = flow_scheduler(shift=3.0)
    scheduler.set_timesteps(28)
    grid = flow_match_grid(28, shift=3.0)
    x = theirs = torch.randn(2, 4, 8, 8)
    for index, time in enumerate(scheduler.timesteps):
        x = sample(process.transition(x, torch.tanh(3 * x), grid, index, 0.0), torch.randn_like(x))
        theirs = scheduler.step(torch.tanh(3 * theirs), time, theirs, return_dict=False)[0]
        assert torch.equal(x, theirs)


def test_renoising_without_fresh_noise_is_the_deterministic_formula() -> None:
    x, v = draw(2, 3)
    levels = levels_at(grid_of(*SIGMAS), 1, x)
    formula = levels.alpha_next * flow_clean(x, v, levels) + levels.sigma_next * flow_noise(x, v, levels)
    ours = RenoiseProcess().transition(x, v, grid_of(*SIGMAS), 1, 0.0).mean
    torch.testing.assert_close(ours, formula, atol=1e-14, rtol=0)


# ------------------------------------------------------------------------------------- forms of the formula
def test_the_mean_is_flow_grpo_equation_nine() -> None:
    x, v = draw(4, 5)
    g, sigma, dt = 0.7 * math.sqrt(0.8 / 0.2), 0.8, -0.1
    expected = x * (1 + g**2 / (2 * sigma) * dt) + v * (1 + g**2 * (1 - sigma) / (2 * sigma)) * dt
    step = FlowProcess().transition(x, v, grid_of(*SIGMAS), 2, 0.7)
    torch.testing.assert_close(step.mean, expected, atol=1e-14, rtol=0)


def test_dance_released_form_is_the_flow_sde_with_constant_g() -> None:
    x, v = draw(4, 5)
    eta, sigma, dt = 0.3, 0.8, -0.1
    score = -(x - (1 - sigma) * (x - sigma * v)) / sigma**2
    step = FlowProcess(dance_rule).transition(x, v, grid_of(*SIGMAS), 2, eta)
    torch.testing.assert_close(step.mean, x + v * dt - 0.5 * eta**2 * score * dt, atol=1e-14, rtol=0)


@pytest.mark.parametrize("rule", [cps_rule, ddim_eta_rule])
def test_the_mean_of_renoising_is_the_coefficient_preserving_formula(rule: StdRule) -> None:
    x, v = draw(4, 5)
    process = RenoiseProcess(rule)
    step = process.transition(x, v, grid_of(*SIGMAS), 2, 0.6)
    levels = levels_at(grid_of(*SIGMAS), 2, x)
    kept = (0.7**2 - step.std.square()).sqrt()
    expected = 0.3 * flow_clean(x, v, levels) + kept * flow_noise(x, v, levels)
    torch.testing.assert_close(step.mean, expected, atol=1e-14, rtol=0)


def test_at_sigma_one_the_formula_keeps_sigma_and_the_rule_alone_is_repaired() -> None:
    x, v = draw(4, 5)
    step = FlowProcess().transition(x, v, grid_of(*SIGMAS), 0, 0.7)
    g, dt = 0.7 / math.sqrt(1 - 0.9), -0.1
    torch.testing.assert_close(step.mean, x * (1 + g**2 / 2 * dt) + v * dt, atol=1e-14, rtol=0)
    torch.testing.assert_close(step.std, torch.full((4, 1), g * math.sqrt(0.1), dtype=torch.float64))


def test_diffusion_is_served_by_the_same_step_as_diffusers_ddim() -> None:
    epsilon = Parameterisation(
        clean=lambda x, eps, at: (x - at.sigma * eps) / at.alpha,
        noise=lambda x, eps, at: eps,
        ode_step=lambda x, eps, at: at.alpha_next * (x - at.sigma * eps) / at.alpha + at.sigma_next * eps,
    )
    scheduler = ddim_scheduler(clip_sample=False, set_alpha_to_one=True)
    scheduler.set_timesteps(10)
    kept = torch.cat([scheduler.alphas_cumprod[scheduler.timesteps], torch.ones(1)])
    grid = NoiseGrid(alpha=kept.sqrt(), sigma=(1 - kept).sqrt(), model_time=scheduler.timesteps)
    process = RenoiseProcess(ddim_eta_rule, epsilon)
    x, eps = draw(2, 3, 4, 4, dtype=torch.float32)
    for index, time in enumerate(scheduler.timesteps.tolist()):
        noise = torch.randn_like(x)
        theirs = scheduler.step(eps, time, x, eta=0.7, variance_noise=noise, return_dict=False)[0]
        ours = sample(process.transition(x, eps, grid, index, 0.7), noise)
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(
            process.clean_estimate(x, eps, grid, index), (x - grid.sigma[index] * eps) / grid.alpha[index]
        )


# ------------------------------------------------------------------------------------------ rows and ranks
@EVERY_PROCESS
@pytest.mark.parametrize("shape", LATENT_SHAPES)
def test_rows_of_one_batch_may_stand_at_different_steps_and_noise_levels(
    process: Process, shape: tuple[int, ...]
) -> None:
    grid = flow_match_grid(4, shift=3.0)
    x, v = draw(4, *shape, dtype=torch.float32)
    steps, levels = torch.tensor([0, 2, 2, 3]), torch.tensor([0.7, 0.0, 0.5, 0.3])
    together = process.transition(x, v, grid, steps, levels)
    assert together.std.shape == (4, *([1] * len(shape)))
    for row, (step, level) in enumerate(zip(steps.tolist(), levels.tolist(), strict=True)):
        alone = process.transition(x[row : row + 1], v[row : row + 1], grid, step, level)
        assert torch.equal(together.mean[row], alone.mean[0])
        assert torch.equal(together.std[row], alone.std[0])
    euler = x[1] + v[1] * (grid.sigma[3] - grid.sigma[2])
    assert torch.equal(together.mean[1], euler)


@EVERY_PROCESS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_inputs_are_calculated_in_float32(process: Process, dtype: torch.dtype) -> None:
    sigmas = (1.0, 0.999, 0.9, 0.5, 0.1, 0.01, 0.001, 0.0)
    grid = grid_of(*sigmas, dtype=torch.float32)
    x, v = (tensor.to(dtype) for tensor in draw(6, 4, 8, dtype=torch.float32))
    step = process.transition(x, v, grid, torch.arange(6), 0.7)
    density = log_prob(step, sample(step, torch.randn(6, 4, 8)).to(dtype))
    assert step.mean.dtype == step.std.dtype == density.dtype == torch.float32
    assert torch.isfinite(density).all()
    single = process.transition(x.float(), v.float(), grid, torch.arange(6), 0.7)
    assert torch.equal(step.mean, single.mean)


@EVERY_PROCESS
def test_gradient_reaches_the_prediction(process: Process) -> None:
    x, v = draw(2, 3)
    v.requires_grad_()
    process.transition(x, v, grid_of(*SIGMAS), 1, 0.5).mean.sum().backward()
    assert v.grad is not None
    assert torch.isfinite(v.grad).all()
    assert (v.grad != 0).all()


def test_the_last_renoising_step_is_deterministic_and_lands_on_the_clean_estimate() -> None:
    grid = grid_of(*SIGMAS)
    x, v = draw(2, 3)
    step = RenoiseProcess().transition(x, v, grid, 3, 0.8)
    assert not step.std.any()
    torch.testing.assert_close(step.mean, RenoiseProcess().clean_estimate(x, v, grid, 3), atol=1e-14, rtol=0)


# ------------------------------------------------------------------------- estimates, noising, bad arguments
@EVERY_PROCESS
def test_the_true_velocity_gives_back_the_data(process: Process) -> None:
    grid = flow_match_grid(6)
    clean, noise = draw(3, 4, 5)
    steps = torch.tensor([0, 3, 5])
    x = process.noised(clean, noise, grid, steps)
    torch.testing.assert_close(process.clean_estimate(x, noise - clean, grid, steps), clean)
    sigma = broadcast_rows(grid.sigma.double()[steps], x)
    torch.testing.assert_close(x, (1 - sigma) * clean + sigma * noise, atol=1e-6, rtol=0)


def test_noising_equals_diffusers_bit_for_bit() -> None:
    scheduler = flow_scheduler(shift=3.0)
    scheduler.set_timesteps(10)
    clean, noise = draw(2, 4, 8, 8, dtype=torch.float32)
    theirs = scheduler.scale_noise(clean, scheduler.timesteps[[4, 7]], noise)
    ours = FlowProcess().noised(clean, noise, flow_match_grid(10, shift=3.0), torch.tensor([4, 7]))
    assert torch.equal(ours, theirs)


@EVERY_PROCESS
@pytest.mark.parametrize("step", [-1, 4, torch.tensor([0, 4]), torch.tensor([-1, 0])])
def test_a_step_outside_the_grid_is_refused(process: Process, step: int | Tensor) -> None:
    x, v = draw(2, 3)
    with pytest.raises(ValueError, match=r"step must lie in \[0, 3\]"):
        process.transition(x, v, grid_of(*SIGMAS), step, 0.5)


@EVERY_PROCESS
@pytest.mark.parametrize("level", [-0.1, math.nan, torch.tensor([0.5, -0.1])])
def test_a_negative_noise_level_is_refused(process: Process, level: float | Tensor) -> None:
    x, v = draw(2, 3)
    with pytest.raises(ValueError, match="noise_level"):
        process.transition(x, v, grid_of(*SIGMAS), 1, level)


def test_a_renoising_level_above_one_is_refused_and_a_flow_level_is_not() -> None:
    x, v = draw(2, 3)
    with pytest.raises(ValueError, match="noise_level"):
        RenoiseProcess().transition(x, v, grid_of(*SIGMAS), 1, 1.2)
    assert FlowProcess().transition(x, v, grid_of(*SIGMAS), 1, 1.2).std.all()


def test_renoise_step_needs_no_flow() -> None:
    sigma_next, std = torch.tensor([[0.5]]), torch.tensor([[0.3]])
    step = renoise_step(torch.tensor([[1.0]]), torch.tensor([[2.0]]), sigma_next, std)
    assert float(step.mean) == pytest.approx(1.0 + (0.4 - 0.5) * 2.0)
