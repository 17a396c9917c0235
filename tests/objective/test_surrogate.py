"""The policy losses: golden numbers, their gradients at the first update and later, and the normalised ratio."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from difalign.core.gaussian import log_prob, mean_over_latent, sample
from difalign.core.types import GaussianStep
from difalign.objective.advantages import group_advantages
from difalign.objective.surrogate import (
    SURROGATES,
    ClipRange,
    PolicyLoss,
    RatioNorm,
    clamped_surrogate,
    clipped_surrogate,
    score_function,
)
from difalign.process.flow import FlowProcess
from difalign.process.grids import flow_match_grid

GRID = flow_match_grid(10, shift=3.0)


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.golden
@pytest.mark.parametrize(
    ("advantage", "delta", "loss"),
    [(1, 1e-3, -1.0001), (1, -1e-3, -0.9990005), (-1, 1e-3, 1.0010005), (-1, -1e-3, 0.9999)],
)
def test_ppo_in_numbers(advantage: float, delta: float, loss: float) -> None:
    result = clipped_surrogate(double(delta), double(0.0), double(advantage), clip_range=1e-4)
    assert float(result.loss) == pytest.approx(loss, abs=1e-9)


def test_the_two_sides_of_the_clip_may_differ() -> None:
    delta, advantage = double(0.5, -0.5), double(1.0, -1.0)
    result = clipped_surrogate(delta, double(0, 0), advantage, clip_range=ClipRange(low=0.1, high=0.3))
    assert result.loss.tolist() == pytest.approx([-1.3, 0.9])


def test_gradient_stops_only_where_the_clip_binds() -> None:
    log_ratio = double(0.5, 0.5, -0.5, -0.5).requires_grad_()
    result = clipped_surrogate(log_ratio, double(0, 0, 0, 0), double(1, -1, 1, -1), clip_range=0.1)
    result.loss.sum().backward()
    assert log_ratio.grad is not None
    assert (log_ratio.grad != 0).tolist() == [False, True, True, False]


@pytest.mark.golden
def test_gradient_on_either_side_of_the_clip_in_numbers() -> None:
    """The clip never holds back a row that is to be made less likely and has become more so."""
    log_ratio = double(0.2, 0.2, -0.2, -0.2).requires_grad_()
    clipped_surrogate(log_ratio, double(0, 0, 0, 0), double(1, -1, -1, 1), clip_range=0.1).loss.sum().backward()
    assert log_ratio.grad is not None
    assert log_ratio.grad.tolist() == pytest.approx([0, 1.221403, 0, -0.818731], abs=1e-6)


def test_the_clamp_stops_the_gradient_on_both_sides() -> None:
    """DPOK's policy term: inside the range the clipped surrogate, outside no gradient for either sign."""
    log_ratio = double(0.2, 0.2, -0.2, -0.2, 0.05, -0.05).requires_grad_()
    advantage = double(1, -1, 1, -1, 1, -1)
    result = clamped_surrogate(log_ratio, double(0, 0, 0, 0, 0, 0), advantage, clip_range=0.1)
    result.loss.sum().backward()
    assert log_ratio.grad is not None
    assert log_ratio.grad[:4].tolist() == [0, 0, 0, 0]
    expected = -advantage[4:] * log_ratio.detach()[4:].exp()
    torch.testing.assert_close(log_ratio.grad[4:], expected)
    assert result.loss[:4].tolist() == pytest.approx([-1.1, 1.1, -0.9, 0.9])


@pytest.mark.parametrize("loss", SURROGATES.values(), ids=SURROGATES)
def test_what_is_logged_about_the_ratio(loss: PolicyLoss) -> None:
    delta = double(2e-3, -2e-3, 5e-4, 2e-3)
    result = loss(delta, double(0, 0, 0, 0), double(1, 1, 1, 1), clip_range=1e-3)
    assert float(result.clip_fraction) == 0.75
    assert float(result.clip_fraction_high) == 0.5
    assert float(result.clip_fraction_low) == 0.25
    assert float(result.approx_kl) == pytest.approx(0.5 * float(delta.square().mean()))
    torch.testing.assert_close(result.ratio, delta.exp())


# ------------------------------------------------------------------------------- a policy with parameters
class Policy:
    """v = weight * x + bias, on rows that were sampled from it."""

    def __init__(self, rows: int = 8) -> None:
        self.parameters = torch.tensor([0.3, -0.2], dtype=torch.float64, requires_grad=True)
        self.x = torch.randn(rows, 3, 4, dtype=torch.float64)
        self.steps = torch.arange(rows) % 9
        self.x_next = sample(self.step(), torch.randn_like(self.x)).detach()
        self.old_log_prob = log_prob(self.step(), self.x_next).detach()
        self.advantage = group_advantages(torch.rand(rows), torch.arange(rows) // 4).advantage.double()

    def step(self) -> GaussianStep:
        velocity = self.parameters[0] * self.x + self.parameters[1]
        return FlowProcess().transition(self.x, velocity, GRID, self.steps, 0.7)

    def log_prob(self) -> Tensor:
        return log_prob(self.step(), self.x_next)

    def loss(self, weight: Tensor | None = None) -> Tensor:
        return clipped_surrogate(
            self.log_prob(), self.old_log_prob, self.advantage, clip_range=1e-4, weight=weight
        ).loss

    def gradient(self, loss: Tensor) -> Tensor:
        return torch.autograd.grad(loss, self.parameters)[0]


def test_the_first_update_is_reinforce() -> None:
    policy = Policy()
    result = clipped_surrogate(policy.log_prob(), policy.old_log_prob, policy.advantage, clip_range=1e-4)
    assert torch.equal(result.ratio, torch.ones(8, dtype=torch.float64))
    assert float(result.clip_fraction) == 0
    assert float(result.approx_kl) == 0
    assert float(result.loss.detach().mean()) == pytest.approx(0, abs=1e-7)  # group means are 0
    reinforce = -(policy.advantage * policy.log_prob()).mean()
    torch.testing.assert_close(policy.gradient(result.loss.mean()), policy.gradient(reinforce), atol=1e-10, rtol=0)


def test_on_policy_both_losses_have_one_gradient_to_the_last_bit() -> None:
    policy, weight = Policy(), torch.rand(8, dtype=torch.float64)
    clipped, score = (
        loss(policy.log_prob(), policy.old_log_prob, policy.advantage, clip_range=1e-4, weight=weight).loss.mean()
        for loss in (clipped_surrogate, score_function)
    )
    gradient = policy.gradient(score)
    assert torch.equal(policy.gradient(clipped), gradient)
    assert bool((gradient != 0).all())


def test_the_score_function_does_not_correct_for_another_sampler() -> None:
    """Off-policy its gradient lacks the ratio's factor, and no clip stops it: hence one update a rollout."""
    policy = Policy()
    with torch.no_grad():
        policy.parameters += 0.05
    score = score_function(policy.log_prob(), policy.old_log_prob, policy.advantage, clip_range=0.5)
    elsewhere = score_function(policy.log_prob(), policy.old_log_prob - 3, policy.advantage, clip_range=0.5)
    assert torch.equal(score.loss, elsewhere.loss)
    log_prob = policy.log_prob()
    corrected = -(policy.advantage * (log_prob - policy.old_log_prob).exp().detach() * log_prob)
    sampled = clipped_surrogate(
        policy.log_prob(), policy.old_log_prob, policy.advantage, clip_range=ClipRange(low=1.0, high=1e9)
    )
    true = policy.gradient(sampled.loss.mean())
    torch.testing.assert_close(policy.gradient(corrected.mean()), true, atol=1e-10, rtol=0)
    assert not torch.allclose(policy.gradient(score.loss.mean()), true, rtol=1e-3)


def test_the_score_of_a_gaussian_in_closed_form() -> None:
    """d log p / d mean = (x' - mean) / std^2, over the number of latent elements since log p is a mean."""
    rows, std = 5, 0.3
    mean = torch.randn(rows, 7, dtype=torch.float64, requires_grad=True)
    step = GaussianStep(mean, torch.full((rows, 1), std, dtype=torch.float64))
    x_next, advantage = torch.randn(rows, 7, dtype=torch.float64), torch.randn(rows, dtype=torch.float64)
    log_density = log_prob(step, x_next)
    score_function(log_density, log_density.detach(), advantage, clip_range=0.1).loss.sum().backward()
    expected = -advantage[:, None] * (x_next - mean.detach()) / std**2 / 7
    torch.testing.assert_close(mean.grad, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_micro_batches_add_up_to_the_batch(parts: int) -> None:
    policy = Policy()
    weight = torch.rand(8, dtype=torch.float64)
    with torch.no_grad():
        policy.parameters += 1e-3  # off the sampling policy, so that some rows clip
    whole = policy.gradient(policy.loss(weight).mean())
    split = sum(
        (policy.gradient(policy.loss(weight)[rows].sum() / 8) for rows in torch.arange(8).chunk(parts)),
        start=torch.zeros(2, dtype=torch.float64),
    )
    torch.testing.assert_close(split, whole, atol=1e-10, rtol=0)


def test_weights_scale_both_branches_and_nothing_without_advantage() -> None:
    delta, zero = double(0.5, -0.5, 0.01, 0.5), double(0, 0, 0, 0)
    advantage, weight = double(1, -1, 1, 0), double(2, 3, 4, 5)
    plain = clipped_surrogate(delta, zero, advantage, clip_range=0.1)
    weighted = clipped_surrogate(delta, zero, advantage, clip_range=0.1, weight=weight)
    torch.testing.assert_close(weighted.loss, plain.loss * weight)
    assert float(weighted.loss[3]) == 0
    assert torch.equal(weighted.ratio, plain.ratio)


@pytest.mark.parametrize("surrogate", SURROGATES.values(), ids=SURROGATES)
def test_only_the_new_log_prob_carries_gradient(surrogate: PolicyLoss) -> None:
    old, advantage, weight = (torch.ones(3, requires_grad=True) for _ in range(3))
    result = surrogate(torch.zeros(3, requires_grad=True), old, advantage, clip_range=0.1, weight=weight)
    result.loss.sum().backward()
    assert not result.ratio.requires_grad
    assert old.grad is None
    assert advantage.grad is None
    assert weight.grad is None


# ---------------------------------------------------------------------------------------------- RatioNorm
def gaussian_pair(rows: int, latent: int) -> tuple[GaussianStep, GaussianStep, Tensor]:
    """The old step, the new step, and the noise of samples from the old."""
    std = torch.linspace(0.05, 2, rows, dtype=torch.float64).reshape(rows, 1)
    old = torch.randn(rows, latent, dtype=torch.float64)
    new = old + 0.01 * torch.randn(rows, latent, dtype=torch.float64)
    return GaussianStep(old, std), GaussianStep(new, std), torch.randn(rows, latent, dtype=torch.float64)


def test_ratio_norm_is_the_mean_shift_along_the_noise() -> None:
    old, new, noise = gaussian_pair(6, 50)
    x_next = sample(old, noise)
    normalised = RatioNorm(new, old.mean)(log_prob(new, x_next), log_prob(old, x_next))
    torch.testing.assert_close(normalised, mean_over_latent((new.mean - old.mean) * noise), atol=1e-14, rtol=0)


def test_ratio_norm_removes_the_bias_of_the_log_ratio() -> None:
    rows, latent, std = 20_000, 4, 0.5
    shift = torch.tensor([0.2, -0.1, 0.3, 0.05], dtype=torch.float64)
    old = GaussianStep(torch.zeros(rows, latent, dtype=torch.float64), double(std).expand(rows, 1))
    new = GaussianStep(old.mean + shift, old.std)
    x_next = sample(old, torch.randn(rows, latent, dtype=torch.float64))
    plain = log_prob(new, x_next) - log_prob(old, x_next)
    normalised = RatioNorm(new, old.mean)(log_prob(new, x_next), log_prob(old, x_next))
    bias = -float(shift.square().mean()) / (2 * std**2)
    for values, expected in ((plain, bias), (normalised, 0.0)):
        error = 4 * float(values.std()) / rows**0.5
        assert float(values.mean()) == pytest.approx(expected, abs=error)
    assert abs(bias) > 4 * float(plain.std()) / rows**0.5


@pytest.mark.golden
def test_ratio_norm_in_numbers() -> None:
    sigma = double(1.0, 0.9, 0.8, 0.7, 0.0)
    grid = type(GRID)(alpha=1 - sigma, sigma=sigma, model_time=sigma[:-1])
    x, v, noise = double(0.5, -1, 2)[None], double(1, 0.25, -0.75)[None], double(0.3, -1.2, 0.7)[None]
    old = FlowProcess().transition(x, v, grid, 2, 0.7)
    new = FlowProcess().transition(x, v + 0.01, grid, 2, 0.7)
    x_next = sample(old, noise)
    result = clipped_surrogate(
        log_prob(new, x_next),
        log_prob(old, x_next),
        double(1),
        clip_range=0.1,
        log_ratio=RatioNorm(new, old.mean),
    )
    assert float(result.ratio) == pytest.approx(1.0000830034, abs=1e-10)


def test_ratio_norm_carries_gradient_at_the_first_update() -> None:
    policy = Policy()
    step = policy.step()
    normalised = RatioNorm(step, step.mean.detach())
    result = clipped_surrogate(
        policy.log_prob(), policy.old_log_prob, policy.advantage, clip_range=1e-4, log_ratio=normalised
    )
    assert torch.equal(result.ratio, torch.ones(8, dtype=torch.float64))
    std = step.std.flatten()
    expected = policy.gradient(-(policy.advantage * std * policy.log_prob()).mean())
    torch.testing.assert_close(policy.gradient(result.loss.mean()), expected, atol=1e-10, rtol=0)


def test_ratio_norm_takes_the_old_mean_as_data() -> None:
    old, new, noise = gaussian_pair(3, 5)
    x_next = sample(old, noise)
    new_mean, old_mean = new.mean.clone().requires_grad_(), old.mean.clone().requires_grad_()
    step = GaussianStep(new_mean, new.std)
    RatioNorm(step, old_mean)(log_prob(step, x_next), log_prob(old, x_next)).sum().backward()
    assert old_mean.grad is None
    assert new_mean.grad is not None


# ---------------------------------------------------------------------------------------------- bad input
@pytest.mark.parametrize(("low", "high"), [(0.0, 0.1), (0.1, 0.0), (-0.1, 0.1), (1.5, 0.1)])
def test_an_empty_clip_range_is_refused(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="clip range"):
        ClipRange(low=low, high=high)


@pytest.mark.parametrize("loss", SURROGATES.values(), ids=SURROGATES)
def test_shapes_that_would_broadcast_are_refused(loss: PolicyLoss) -> None:
    row = torch.zeros(4)
    with pytest.raises(ValueError, match="weight"):
        loss(row, row, row, clip_range=0.1, weight=torch.ones(4, 1))
    with pytest.raises(ValueError, match="advantage"):
        loss(row, row, torch.zeros(1), clip_range=0.1)
    with pytest.raises(ValueError, match="old_log_prob"):
        loss(row, torch.zeros(4, 4), row, clip_range=0.1)
