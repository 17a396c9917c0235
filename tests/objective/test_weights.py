"""Step weights: published tables, normalisation over the trained steps, and why they have this form."""

from __future__ import annotations

import math

import pytest
import torch

from difalign.core.gaussian import log_prob, sample
from difalign.core.types import NoiseGrid
from difalign.objective.weights import (
    STEP_WEIGHTS,
    WeightRule,
    inverse_step_size,
    noise_aware,
    step_weights,
    trained_steps,
    uniform,
)
from difalign.process.flow import FlowProcess, RenoiseProcess
from difalign.process.grids import dynamic_mu, flow_match_grid, uniform_sigmas
from difalign.process.rules import dance_rule
from tests.pipelines.packed import make
from tests.tiny_packed import FLUX_DEV_SCHEDULE, QWEN_IMAGE_SCHEDULE, scheduler

SD35 = flow_match_grid(10, shift=3.0)
QWEN_MU = dynamic_mu(1024, max_sequence_length=8192, max_shift=0.9)


def flux(num_steps: int, tokens: int) -> NoiseGrid:
    return flow_match_grid(num_steps, mu=dynamic_mu(tokens), sigmas=uniform_sigmas(num_steps))


def all_but_last(grid: NoiseGrid) -> torch.Tensor:
    return torch.arange(grid.num_steps - 1)


GOLDEN = {  # grid, noise level, weights of steps 0 to n - 2, normaliser 1 / mean(std)
    "sd35": (SD35, 0.7, (1.5766, 1.6733, 1.2075, 1.0043, 0.8824, 0.7946, 0.7186, 0.6351, 0.5076), 2.2522),
    "flux 1024, 10 steps": (
        flux(10, 4096),
        0.9,
        (1.5534, 1.6432, 1.1859, 0.9872, 0.8698, 0.7882, 0.7230, 0.6613, 0.5879),
        1.7260,
    ),
    "flux 512, 10 steps": (
        flux(10, 1024),
        0.9,
        (1.7362, 1.7718, 1.2438, 1.0031, 0.8519, 0.7394, 0.6443, 0.5538, 0.4558),
        1.9291,
    ),
    "flux 512, 6 steps": (flux(6, 1024), 0.9, (1.3298, 1.3759, 0.9546, 0.7475, 0.5922), 1.4776),
    "flux 1024, 6 steps": (flux(6, 4096), 0.9, (1.1929, 1.3164, 0.9659, 0.8135, 0.7113), 1.3254),
    "qwen 512": (
        flow_match_grid(10, mu=QWEN_MU, shift_terminal=0.02, sigmas=uniform_sigmas(10)),
        1.2,
        (1.8395, 1.8518, 1.2831, 1.0186, 0.8482, 0.7172, 0.6022, 0.4872, 0.3522),
        1.5329,
    ),
}


@pytest.mark.golden
@pytest.mark.parametrize("name", GOLDEN)
def test_published_weights(name: str) -> None:
    grid, noise_level, weights, normaliser = GOLDEN[name]
    trained = all_but_last(grid)
    ours = step_weights(noise_aware, FlowProcess(), grid, trained, noise_level=noise_level)
    assert ours[:-1].tolist() == pytest.approx(weights, abs=1e-4)
    assert float(ours[-1]) == 0
    steps = trained_steps(FlowProcess(), grid, trained, noise_level=noise_level)
    assert 1 / float(steps.std.mean()) == pytest.approx(normaliser, abs=1e-4)


@pytest.mark.golden
@pytest.mark.parametrize(("name", "hard_coded"), [("sd35", 2.25), ("flux 1024, 10 steps", 1.73), ("qwen 512", 1.53)])
def test_the_normalisers_of_the_released_scripts(name: str, hard_coded: float) -> None:
    grid, noise_level, _, _ = GOLDEN[name]
    steps = trained_steps(FlowProcess(), grid, all_but_last(grid), noise_level=noise_level)
    assert 1 / float(steps.std.mean()) == pytest.approx(hard_coded, abs=0.01)


# Published tables as above, from the published schedulers through the adapters: family, schedule, pixels, steps.
PUBLISHED_MODELS = {
    "flux 1024, 10 steps": ("flux", FLUX_DEV_SCHEDULE, 1024, 10),
    "flux 512, 10 steps": ("flux", FLUX_DEV_SCHEDULE, 512, 10),
    "flux 512, 6 steps": ("flux", FLUX_DEV_SCHEDULE, 512, 6),
    "flux 1024, 6 steps": ("flux", FLUX_DEV_SCHEDULE, 1024, 6),
    "qwen 512": ("qwen", QWEN_IMAGE_SCHEDULE, 512, 10),
}


@pytest.mark.golden
@pytest.mark.parametrize("name", PUBLISHED_MODELS)
def test_published_weights_from_the_adapters(name: str) -> None:
    family, schedule, pixels, steps = PUBLISHED_MODELS[name]
    side = pixels // 4  # the tiny models halve the sides where the published ones divide them by 8: as many tokens
    pipeline = make(family, height=side, width=side)
    pipeline.diffusers_pipeline.scheduler = scheduler(schedule)
    grid, (_, noise_level, weights, normaliser) = pipeline.grid(steps), GOLDEN[name]
    trained = all_but_last(grid)
    ours = step_weights(noise_aware, pipeline.process, grid, trained, noise_level=noise_level)
    assert ours[:-1].tolist() == pytest.approx(weights, abs=1e-4)
    stds = trained_steps(pipeline.process, grid, trained, noise_level=noise_level).std
    assert 1 / float(stds.mean()) == pytest.approx(normaliser, abs=1e-4)
    assert torch.equal(grid.sigma, GOLDEN[name][0].sigma)  # as the process layer has it


@pytest.mark.parametrize("process", [FlowProcess(), FlowProcess(dance_rule), RenoiseProcess()])
def test_weights_are_positive_with_mean_one(process: FlowProcess | RenoiseProcess) -> None:
    weights = step_weights(noise_aware, process, SD35, all_but_last(SD35), noise_level=0.7)[:-1]
    assert (weights > 0).all()
    assert float(weights.mean()) == pytest.approx(1.0, abs=1e-6)


def test_the_noise_level_cancels() -> None:
    low, high = (
        step_weights(noise_aware, FlowProcess(), SD35, all_but_last(SD35), noise_level=level) for level in (0.2, 1.3)
    )
    torch.testing.assert_close(low, high)


def test_a_window_keeps_its_place_in_the_chain_and_has_mean_one_itself() -> None:
    window = torch.tensor([3, 4, 5])
    weights = step_weights(noise_aware, FlowProcess(), SD35, window, noise_level=0.7)
    full = step_weights(noise_aware, FlowProcess(), SD35, all_but_last(SD35), noise_level=0.7)
    assert float(weights[window].mean()) == pytest.approx(1.0, abs=1e-6)
    torch.testing.assert_close(weights[window] / weights[3], full[window] / full[3])
    assert weights.count_nonzero() == 3


def test_steps_may_have_noise_levels_of_their_own_in_any_order() -> None:
    shuffled = step_weights(
        noise_aware, FlowProcess(), SD35, torch.tensor([5, 2]), noise_level=torch.tensor([0.7, 0.35])
    )
    stds = trained_steps(FlowProcess(), SD35, torch.tensor([2, 5]), noise_level=torch.tensor([0.35, 0.7])).std
    assert float(shuffled[2] / shuffled[5]) == pytest.approx(float(stds[0] / stds[1]), rel=1e-6)


def test_uniform_is_one_at_the_trained_steps() -> None:
    weights = step_weights(uniform, FlowProcess(), SD35, torch.tensor([0, 4]), noise_level=0.7)
    assert weights.tolist() == [1, 0, 0, 0, 1, 0, 0, 0, 0, 0]


def test_inverse_step_size_divides_by_the_fall_of_sigma() -> None:
    grid = flow_match_grid(4, sigmas=uniform_sigmas(4))
    weights = step_weights(inverse_step_size, FlowProcess(), grid, torch.arange(3), noise_level=0.7)
    assert weights.tolist() == pytest.approx([4, 4, 4, 0])


@pytest.mark.parametrize("rule", STEP_WEIGHTS.values(), ids=STEP_WEIGHTS)
def test_repeated_or_foreign_steps_are_refused(rule: WeightRule) -> None:
    with pytest.raises(ValueError, match="repeat"):
        step_weights(rule, FlowProcess(), SD35, torch.tensor([1, 1]), noise_level=0.7)
    with pytest.raises(ValueError, match=r"\[0, 9\]"):
        step_weights(rule, FlowProcess(), SD35, torch.tensor([10]), noise_level=0.7)


def test_a_step_without_noise_cannot_be_weighted_by_it() -> None:
    with pytest.raises(ValueError, match=r"\[9\]"):
        step_weights(noise_aware, RenoiseProcess(), SD35, torch.arange(10), noise_level=0.7)


def test_the_weight_turns_the_gradient_scale_into_the_step_size() -> None:
    """|d log p / dv| * sqrt(D) * std / dt is 1 + a^2 / 2 at every step, and 1 at sigma = 1."""
    size, a = 4096, 0.7
    for index in range(9):
        x = torch.randn(1, size, dtype=torch.float64)
        v = torch.randn(1, size, dtype=torch.float64, requires_grad=True)
        step = FlowProcess().transition(x, v, SD35, index, a)
        log_prob(step, sample(step, torch.randn_like(x))).sum().backward()
        assert v.grad is not None
        dt = float(SD35.sigma[index] - SD35.sigma[index + 1])
        scale = float(v.grad.norm()) * math.sqrt(size) * float(step.std.detach()) / dt
        assert scale == pytest.approx(1.0 if index == 0 else 1 + a**2 / 2, rel=0.05)
