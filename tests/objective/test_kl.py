"""The four divergences: how they relate, that they reach the policy and never the reference."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from difalign.core.protocols import Process
from difalign.core.types import NoiseGrid
from difalign.objective.kl import KL_TYPES, Divergence, evaluate, flow_grpo, gaussian, velocity, x0
from difalign.process.flow import FlowProcess, RenoiseProcess
from difalign.process.grids import flow_match_grid
from difalign.process.rules import dance_rule, wan_rule

GRID = flow_match_grid(10, shift=3.0)
EVERY_KL = pytest.mark.parametrize("divergence", KL_TYPES.values(), ids=KL_TYPES)
STEPS = torch.arange(9)


def inputs(*latent: int) -> tuple[Tensor, Tensor, Tensor]:
    x, v, other = torch.randn(3, 9, *latent, dtype=torch.float64)
    return x, v, v + 0.1 * other


def measure(
    divergence: Divergence, process: Process, x: Tensor, v: Tensor, reference: Tensor, grid: NoiseGrid = GRID
) -> Tensor:
    steps = STEPS[: x.shape[0]]
    policy, other = (evaluate(process, grid, x, p, step=steps, noise_level=0.7) for p in (v, reference))
    return divergence(policy, other)


@pytest.mark.golden
def test_both_forms_in_numbers() -> None:
    sigma = torch.tensor([0.8, 0.7, 0.0], dtype=torch.float64)
    grid = NoiseGrid(alpha=1 - sigma, sigma=sigma, model_time=sigma[:-1])
    x, v = torch.tensor([[[0.5, -1.0, 2.0]], [[1.0, 0.25, -0.75]]], dtype=torch.float64)
    assert float(measure(gaussian, FlowProcess(), x, v + 0.01, v, grid)) == pytest.approx(3.954145e-6, abs=1e-12)
    assert float(measure(flow_grpo, FlowProcess(), x, v + 0.01, v, grid)) == pytest.approx(3.954145e-7, abs=1e-13)


@pytest.mark.parametrize("process", [FlowProcess(), FlowProcess(dance_rule), FlowProcess(wan_rule)])
def test_the_closed_form_in_velocities(process: FlowProcess) -> None:
    """dt / 2 * (g (1 - sigma) / (2 sigma) + 1 / g)^2 * |dv|^2 (Flow-GRPO, after Eq. 9)."""
    x, v, reference = inputs(3, 4)
    sigma = GRID.sigma.double()[:9]
    dt = sigma - GRID.sigma.double()[1:10]
    std = process.transition(x, v, GRID, STEPS, 0.7).std.flatten()
    g = std / dt.sqrt()
    expected = dt / 2 * (g * (1 - sigma) / (2 * sigma) + 1 / g) ** 2 * measure(velocity, process, x, v, reference)
    torch.testing.assert_close(measure(gaussian, process, x, v, reference), expected, atol=1e-12, rtol=1e-10)


def test_flow_grpo_lacks_the_step_size() -> None:
    x, v, reference = inputs(3, 4)
    ratio = measure(flow_grpo, FlowProcess(), x, v, reference) / measure(gaussian, FlowProcess(), x, v, reference)
    torch.testing.assert_close(ratio, GRID.sigma[:9].double() - GRID.sigma[1:10].double(), atol=1e-12, rtol=0)


def test_x0_is_velocity_times_sigma_squared() -> None:
    x, v, reference = inputs(3, 4)
    ratio = measure(x0, FlowProcess(), x, v, reference) / measure(velocity, FlowProcess(), x, v, reference)
    torch.testing.assert_close(ratio, GRID.sigma[:9].double().square())


@EVERY_KL
@pytest.mark.parametrize("process", [FlowProcess(), RenoiseProcess()])
@pytest.mark.parametrize("latent", [(7, 3), (3, 4, 5), (2, 3, 4, 5)])
def test_zero_at_the_reference_and_positive_elsewhere(
    divergence: Divergence, process: Process, latent: tuple[int, ...]
) -> None:
    x, v, reference = inputs(*latent)
    assert not measure(divergence, process, x, v, v.clone()).any()
    away = measure(divergence, process, x, v, reference)
    assert away.shape == (9,)
    assert (away > 0).all()


@EVERY_KL
def test_gradient_is_zero_at_the_reference_and_nonzero_elsewhere(divergence: Divergence) -> None:
    x, v, reference = inputs(3, 4)
    v.requires_grad_()
    reference.requires_grad_()
    (at_reference,) = torch.autograd.grad(measure(divergence, FlowProcess(), x, v, v.detach()).sum(), v)
    assert not at_reference.any()
    loss = measure(divergence, FlowProcess(), x, v, reference).sum()
    to_policy, to_reference = torch.autograd.grad(loss, [v, reference], allow_unused=True)
    assert (to_policy != 0).all()
    assert to_reference is None


@EVERY_KL
def test_gradient_pulls_towards_the_reference(divergence: Divergence) -> None:
    x, v, reference = inputs(3, 4)
    v.requires_grad_()
    (gradient,) = torch.autograd.grad(measure(divergence, FlowProcess(), x, v, reference).sum(), v)
    assert torch.equal(gradient.sign(), (v - reference).sign())


@pytest.mark.parametrize(("divergence", "needs_noise"), [(gaussian, True), (flow_grpo, True), (velocity, False)])
def test_only_the_density_forms_need_noise(divergence: Divergence, needs_noise: bool) -> None:
    x, v, reference = inputs(3)
    policy, other = (evaluate(FlowProcess(), GRID, x, p, step=STEPS, noise_level=0.0) for p in (v, reference))
    if needs_noise:
        with pytest.raises(ValueError, match="deterministic"):
            divergence(policy, other)
    else:
        assert torch.isfinite(divergence(policy, other)).all()


def test_half_predictions_are_compared_in_float32() -> None:
    x, v, reference = (tensor.bfloat16() for tensor in inputs(3, 4))
    for divergence in KL_TYPES.values():
        assert measure(divergence, FlowProcess(), x, v, reference).dtype == torch.float32


def test_an_int_step_is_the_step_of_every_row() -> None:
    x, v, _ = inputs(3)
    one = evaluate(FlowProcess(), GRID, x, v, step=4, noise_level=0.7)
    many = evaluate(FlowProcess(), GRID, x, v, step=torch.full((9,), 4), noise_level=torch.full((9,), 0.7).double())
    assert torch.equal(one.step_size, many.step_size)
    torch.testing.assert_close(one.step.mean, many.step.mean, atol=1e-7, rtol=0)
