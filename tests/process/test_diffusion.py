"""The DDIM step: equal to diffusers to the last bit, golden numbers, and the marginals of an analytic model.

Golden numbers are those of Stable Diffusion's schedule: scaled linear betas 0.00085 to 0.012, leading spacing, offset
1, last alpha not set to one.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from difalign.core.gaussian import kl_same_std, log_prob, sample
from difalign.core.types import GaussianStep, NoiseGrid
from difalign.process.diffusion import LEAST_STD, DiffusionProcess
from difalign.process.diffusion_grids import SPACINGS, ddim_grid
from difalign.process.flow import RenoiseProcess
from difalign.process.prediction import DIFFUSION_PREDICTIONS, EPSILON, V_PREDICTION
from difalign.process.rules import ddim_eta_rule
from tests.process.diffusers_reference import ddim_scheduler

EVERY_SPACING = pytest.mark.parametrize("spacing", SPACINGS)
EVERY_PREDICTION = pytest.mark.parametrize("prediction_type", DIFFUSION_PREDICTIONS)
# fmt: off
SIGMAS_20 = (
    0.64439, 0.6241, 0.60289, 0.58073, 0.55762, 0.53358, 0.50867, 0.48294, 0.45647, 0.42932,
    0.40155, 0.37318, 0.34418, 0.31441, 0.28355, 0.25087, 0.21439, 0.16729, 0.0406, 0.02065,
)
SENSITIVITY_20 = (
    -0.853, -0.814, -0.778, -0.745, -0.716, -0.689, -0.667, -0.649, -0.635, -0.626,
    -0.623, -0.626, -0.636, -0.657, -0.693, -0.754, -0.868, -1.141, -5.431, -1.003,
)
# fmt: on


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """x, a prediction, noise."""
    x, prediction, noise = torch.randn(3, *shape, dtype=dtype).unbind()
    return x, prediction, noise


def all_steps(grid: NoiseGrid, noise_level: float, *, process: DiffusionProcess | None = None) -> GaussianStep:
    """Every step of a grid from x = 0 under a prediction of 0, a row a step."""
    zeros = torch.zeros(grid.num_steps, 1)
    return (process or DiffusionProcess()).transition(zeros, zeros, grid, torch.arange(grid.num_steps), noise_level)


# ------------------------------------------------------------------------------------------ against diffusers
def assert_steps_are_those_of_diffusers(
    num_steps: int, *, spacing: str, prediction_type: str, offset: int = 1, one: bool = False, zero_snr: bool = False
) -> None:
    """Every step of a chain at three etas, sample and estimate of the data, to the last bit."""
    scheduler = ddim_scheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=one,
        steps_offset=offset,
        timestep_spacing=spacing,
        prediction_type=prediction_type,
        rescale_betas_zero_snr=zero_snr,
    )
    scheduler.set_timesteps(num_steps)
    grid = ddim_grid(
        num_steps, spacing=SPACINGS[spacing], steps_offset=offset, set_alpha_to_one=one, zero_terminal_snr=zero_snr
    )
    process = DiffusionProcess().reading(prediction_type)
    x, prediction, noise = draw(2, 3, 4, 4)
    for index, time in enumerate(scheduler.timesteps.tolist()):
        for eta in (0.0, 0.3, 1.0):
            given = noise if eta else None
            theirs = scheduler.step(prediction, time, x, eta=eta, variance_noise=given)
            step = process.transition(x, prediction, grid, index, eta)
            assert bool(step.mean.isfinite().all())
            if zero_snr and index == 0 and eta == 1.0 and not bool(theirs.prev_sample.isfinite().all()):
                # It takes the root of a rounding error below 0, where nothing of the noise is kept.
                data = grid.alpha_next[0] * process.clean_estimate(x, prediction, grid, 0)
                torch.testing.assert_close(step.mean, data.float(), atol=1e-6, rtol=0)
            else:
                assert torch.equal(sample(step, noise), theirs.prev_sample), (num_steps, index, eta)
            assert (eta == 0.0) <= bool((step.std == 0).all())
        clean = process.clean_estimate(x, prediction, grid, index)
        assert torch.equal(clean, theirs.pred_original_sample)


@EVERY_SPACING
@EVERY_PREDICTION
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("one", [False, True])
def test_every_step_equals_diffusers_bit_for_bit(spacing: str, prediction_type: str, offset: int, one: bool) -> None:
    for num_steps in (1, 7, 20, 50):
        assert_steps_are_those_of_diffusers(
            num_steps, spacing=spacing, prediction_type=prediction_type, offset=offset, one=one
        )


@EVERY_SPACING
@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
def test_from_pure_noise_too(spacing: str, prediction_type: str) -> None:
    for num_steps in (7, 20):
        assert_steps_are_those_of_diffusers(num_steps, spacing=spacing, prediction_type=prediction_type, zero_snr=True)


def test_a_batch_at_different_steps_is_its_rows_bit_for_bit() -> None:
    grid, process = ddim_grid(20), DiffusionProcess()
    x, prediction, _ = draw(5, 3, 4, 4)
    steps, eta = torch.tensor([0, 19, 7, 18, 0]), torch.tensor([1.0, 0.5, 0.0, 1.0, 0.2])
    together = process.transition(x, prediction, grid, steps, eta)
    for row, (step, level) in enumerate(zip(steps.tolist(), eta.tolist(), strict=True)):
        alone = process.transition(x[row : row + 1], prediction[row : row + 1], grid, step, level)
        assert torch.equal(together.mean[row], alone.mean[0])
        assert torch.equal(together.std[row], alone.std[0])
        assert torch.equal(
            process.clean_estimate(x, prediction, grid, steps)[row],
            process.clean_estimate(x[row : row + 1], prediction[row : row + 1], grid, step)[0],
        )


def test_noising_equals_diffusers() -> None:
    scheduler = ddim_scheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)
    grid, (clean, noise, _) = ddim_grid(20), draw(20, 3, 4, 4)
    ours = DiffusionProcess().noised(clean, noise, grid, torch.arange(20))
    torch.testing.assert_close(ours, scheduler.add_noise(clean, noise, grid.model_time), atol=1e-6, rtol=0)


# --------------------------------------------------------------------------------------------- golden numbers
@pytest.mark.golden
def test_stds_of_twenty_steps() -> None:
    stds = all_steps(ddim_grid(20), 1.0).std.flatten().tolist()
    assert stds == pytest.approx(SIGMAS_20, abs=6e-6)


@pytest.mark.golden
def test_stds_of_fifty_steps() -> None:
    grid = ddim_grid(50)
    stds = dict(zip(grid.model_time.tolist(), all_steps(grid, 1.0).std.flatten().tolist(), strict=True))
    expected = {981: 0.45446, 41: 0.09989, 21: 0.03948, 1: 0.02065}
    assert {t: stds[t] for t in expected} == pytest.approx(expected, abs=6e-6)


def sensitivity(grid: NoiseGrid) -> Tensor:
    """d mean / d eps divided by the std, [T]: how strongly the log-density answers to the prediction."""
    steps = torch.arange(grid.num_steps)
    zeros = torch.zeros(grid.num_steps, 1, dtype=torch.float64)
    moved, still = (DiffusionProcess().transition(zeros, zeros + e, grid, steps, 1.0) for e in (1.0, 0.0))
    return ((moved.mean - still.mean) / still.std).flatten()


@pytest.mark.golden
def test_the_second_to_last_step_is_by_far_the_most_sensitive() -> None:
    assert sensitivity(ddim_grid(20)).tolist() == pytest.approx(SENSITIVITY_20, abs=6e-4)
    grid = ddim_grid(50)
    at_21 = float(sensitivity(grid)[grid.model_time.tolist().index(21)])
    assert abs(at_21) == pytest.approx(3.27, abs=0.006)
    assert at_21**2 / 2 == pytest.approx(5.36, abs=0.006)


def test_divergence_of_two_predictions_in_closed_form() -> None:
    """KL = c^2 / (2 std^2) * (eps - eps')^2 with c = d mean / d eps."""
    grid, (x, first, second) = ddim_grid(20), draw(20, 3, 4, 4, dtype=torch.float64)
    steps = torch.arange(20)
    one, other = (DiffusionProcess().transition(x, eps, grid, steps, 1.0) for eps in (first, second))
    scale = sensitivity(grid).square() / 2
    expected = scale * (first - second).square().flatten(1).mean(1)
    torch.testing.assert_close(kl_same_std(one, other.mean), expected, rtol=1e-9, atol=0)
    normal = [torch.distributions.Normal(step.mean, step.std.expand_as(step.mean)) for step in (one, other)]
    theirs = torch.distributions.kl_divergence(*normal).flatten(1).mean(1)
    torch.testing.assert_close(kl_same_std(one, other.mean), theirs, rtol=1e-9, atol=0)


# ----------------------------------------------------------------------------------------------- the last step
@pytest.mark.parametrize(
    ("options", "last"),
    [
        ({}, 0.02065),
        ({"set_alpha_to_one": True}, 0.0),
        ({"steps_offset": 0}, 0.0),
        ({"spacing": SPACINGS["linspace"]}, 0.0),
        ({"spacing": SPACINGS["trailing"]}, 0.0289),
    ],
    ids=["sd", "alpha one", "no offset", "linspace", "trailing"],
)
def test_a_chain_that_ends_without_noise_has_a_deterministic_last_step(options: Any, last: float) -> None:
    # With the default alpha a `trailing` chain of 20 lands at the first alpha, with std 0.0289.
    grid = ddim_grid(20, **options)
    step = all_steps(grid, 1.0)
    assert bool(step.mean.isfinite().all())
    assert bool(step.std.isfinite().all())
    stds = step.std.flatten()
    assert float(stds[-1]) == pytest.approx(last, abs=6e-5)
    assert bool((stds[:-1] > 0.01).all())
    if last == 0.0:
        with pytest.raises(ValueError, match="deterministic step has no density"):
            log_prob(GaussianStep(step.mean[-1:], step.std[-1:]), step.mean[-1:])


def test_noise_too_small_for_a_density_is_none() -> None:
    grid, (x, prediction, _) = ddim_grid(20), draw(1, 3, 4, 4)
    process, last = DiffusionProcess(), SIGMAS_20[-1]
    kept = process.transition(x, prediction, grid, 19, 1.1 * LEAST_STD / last)
    assert float(kept.std) == pytest.approx(1.1 * LEAST_STD, rel=1e-3)
    dropped = process.transition(x, prediction, grid, 19, 0.9 * LEAST_STD / last)
    ode = process.transition(x, prediction, grid, 19, 0.0)
    assert float(dropped.std) == 0.0
    assert torch.equal(dropped.mean, ode.mean)


def test_eta_zero_has_no_density() -> None:
    x, prediction, _ = draw(1, 3, 4, 4)
    step = DiffusionProcess().transition(x, prediction, ddim_grid(20), 3, 0.0)
    with pytest.raises(ValueError, match="no density"):
        log_prob(step, step.mean)


@pytest.mark.parametrize("eta", [-0.1, 1.1])
def test_eta_out_of_range_is_refused(eta: float) -> None:
    x, prediction, _ = draw(1, 3)
    with pytest.raises(ValueError, match=rf"\[0, 1.0\], got {eta}"):
        DiffusionProcess().transition(x, prediction, ddim_grid(20), 0, eta)
    with pytest.raises(ValueError, match="step must lie in"):
        DiffusionProcess().transition(x, prediction, ddim_grid(20), 20, 1.0)


def test_unknown_prediction_types_are_refused() -> None:
    with pytest.raises(ValueError, match="epsilon, v_prediction, sample, got 'flow_prediction'"):
        DiffusionProcess().reading("flow_prediction")


# ------------------------------------------------------------------------------------------------- predictions
@pytest.mark.parametrize("index", [0, 10, 18, 19])
@EVERY_PREDICTION
def test_one_state_gives_one_step_whatever_is_predicted(index: int, prediction_type: str) -> None:
    grid = ddim_grid(20)
    clean, noise, _ = draw(2, 3, 4, 4, dtype=torch.float64)
    alpha, sigma = grid.alpha[index], grid.sigma[index]
    said = {"epsilon": noise, "v_prediction": alpha * noise - sigma * clean, "sample": clean}
    x = DiffusionProcess().noised(clean, noise, grid, index)
    process = DiffusionProcess().reading(prediction_type)
    step = process.transition(x, said[prediction_type], grid, index, 1.0)
    expected = DiffusionProcess().transition(x, noise, grid, index, 1.0)
    torch.testing.assert_close(step.mean, expected.mean, atol=1e-6, rtol=0)  # the roots are of float32 shares
    assert torch.equal(step.std, expected.std)
    torch.testing.assert_close(process.clean_estimate(x, said[prediction_type], grid, index), clean, atol=1e-5, rtol=0)


def test_guidance_on_v_is_guidance_on_the_noise() -> None:
    """Reading a prediction is affine in it with one slope, and guidance is affine with weights that add up to one."""
    grid, (x, first, second) = ddim_grid(20), draw(2, 3, 4, 4, dtype=torch.float64)
    alpha, sigma = grid.alpha[7], grid.sigma[7]
    guided_v = first + 4.0 * (second - first)
    eps = [alpha * v + sigma * x for v in (first, second)]
    guided_eps = eps[0] + 4.0 * (eps[1] - eps[0])
    by_v = DiffusionProcess(V_PREDICTION).transition(x, guided_v, grid, 7, 1.0)
    by_eps = DiffusionProcess(EPSILON).transition(x, guided_eps, grid, 7, 1.0)
    torch.testing.assert_close(by_v.mean, by_eps.mean, atol=1e-5, rtol=0)


@EVERY_PREDICTION
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_it_is_the_renoising_step_under_the_ddim_rule(prediction_type: str, eta: float) -> None:
    """Two orders of the same operations; what is left is that alpha^2 + sigma^2 is 1 to float32 only."""
    grid = ddim_grid(20, set_alpha_to_one=True)
    x, prediction, _ = draw(20, 3, 4, 4, dtype=torch.float64)
    steps = torch.arange(20)
    reading = DIFFUSION_PREDICTIONS[prediction_type]
    one = DiffusionProcess(reading).transition(x, prediction, grid, steps, eta)
    other = RenoiseProcess(ddim_eta_rule, reading).transition(x, prediction, grid, steps, eta)
    torch.testing.assert_close(one.mean, other.mean, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(one.std, other.std, atol=1e-6, rtol=0)


def test_zero_terminal_snr_is_finite_with_v() -> None:
    kept = torch.tensor([0.0, 0.3, 0.9])
    grid = NoiseGrid.variance_preserving(kept[:-1], kept[1:], torch.tensor([999, 499]))
    x, v, _ = draw(2, 3, 4, 4)
    for eta in (0.0, 1.0):
        step = DiffusionProcess(V_PREDICTION).transition(x, v, grid, 0, eta)
        assert bool(step.mean.isfinite().all())
        torch.testing.assert_close(DiffusionProcess(V_PREDICTION).clean_estimate(x, v, grid, 0), -v, atol=0, rtol=0)
