"""The one Gaussian against torch.distributions, its expectation, and the rounding rule."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from difalign.core.gaussian import (
    LOG_PROBS,
    LogProb,
    as_rows,
    broadcast_rows,
    compute_dtype,
    kl_same_std,
    log_prob,
    mean_over_latent,
    sample,
    squared_error_log_prob,
)
from difalign.core.types import GaussianStep

LATENT_SHAPES = [(7, 3), (3, 4, 5), (2, 3, 4, 5)]  # packed tokens, image, video


def step_of(shape: tuple[int, ...], dtype: torch.dtype = torch.float64, rows: int = 5) -> GaussianStep:
    mean = torch.randn(rows, *shape, dtype=dtype)
    return GaussianStep(mean=mean, std=broadcast_rows(torch.linspace(0.1, 2.0, rows, dtype=dtype), mean))


@pytest.mark.parametrize("shape", LATENT_SHAPES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_log_prob_is_the_mean_density_of_independent_normals(
    shape: tuple[int, ...], dtype: torch.dtype, tolerance: float
) -> None:
    step = step_of(shape, dtype)
    x_next = sample(step, torch.randn_like(step.mean))
    expected = Normal(step.mean, step.std).log_prob(x_next).flatten(1).mean(1)
    torch.testing.assert_close(log_prob(step, x_next), expected, atol=tolerance, rtol=0)
    assert log_prob(step, x_next).dtype == dtype


def test_expected_log_prob_and_its_spread_over_samples() -> None:
    latent, rows = 1024, 2000
    std = torch.full((rows, 1), 0.37, dtype=torch.float64)
    step = GaussianStep(mean=torch.zeros(rows, latent, dtype=torch.float64), std=std)
    values = log_prob(step, sample(step, torch.randn(rows, latent, dtype=torch.float64)))
    spread = 1 / math.sqrt(2 * latent)
    expected = -0.5 - math.log(0.37) - 0.5 * math.log(2 * math.pi)
    assert abs(float(values.mean()) - expected) < 4 * spread / math.sqrt(rows)
    assert float(values.std()) == pytest.approx(spread, rel=4 / math.sqrt(2 * rows))


def test_log_prob_takes_the_next_state_as_data() -> None:
    mean = torch.zeros(2, 3, requires_grad=True)
    x_next = torch.ones(2, 3, requires_grad=True)
    log_prob(GaussianStep(mean=mean, std=torch.ones(2, 1)), x_next).sum().backward()
    assert mean.grad is not None
    torch.testing.assert_close(mean.grad, torch.full((2, 3), 1 / 3))
    assert x_next.grad is None


@pytest.mark.parametrize("function", LOG_PROBS.values(), ids=LOG_PROBS)
def test_a_deterministic_row_has_no_density(function: LogProb) -> None:
    step = GaussianStep(mean=torch.zeros(2, 3), std=torch.tensor([[1.0], [0.0]]))
    with pytest.raises(ValueError, match="deterministic"):
        function(step, torch.zeros(2, 3))
    with pytest.raises(ValueError, match="deterministic"):
        kl_same_std(step, torch.zeros(2, 3))


def test_sample_is_exactly_the_mean_without_noise() -> None:
    step = GaussianStep(mean=torch.randn(2, 3), std=torch.tensor([[0.0], [1.0]]))
    drawn = sample(step, torch.ones(2, 3))
    assert torch.equal(drawn[0], step.mean[0])
    assert torch.equal(drawn[1], step.mean[1] + 1)


def test_float64_noise_leaves_a_float32_step_in_float32() -> None:
    step = step_of((3,), torch.float32)
    assert sample(step, torch.zeros(5, 3, dtype=torch.float64)).dtype == torch.float32


def test_squared_error_is_the_density_without_variance_and_constants() -> None:
    step = step_of((4, 4))
    first, second = torch.randn(2, *step.mean.shape, dtype=torch.float64)
    true_difference = log_prob(step, first) - log_prob(step, second)
    plain_difference = squared_error_log_prob(step, first) - squared_error_log_prob(step, second)
    torch.testing.assert_close(plain_difference, true_difference * 2 * step.std.flatten().square())


def test_kl_matches_torch_distributions() -> None:
    step, other = step_of((3, 4)), step_of((3, 4))
    expected = kl_divergence(Normal(step.mean, step.std), Normal(other.mean, step.std)).flatten(1).mean(1)
    torch.testing.assert_close(kl_same_std(step, other.mean), expected)


@pytest.mark.parametrize("storage", [torch.float32, torch.float16, torch.bfloat16])
def test_the_first_ratio_is_exactly_one_when_rounding_comes_before_the_density(storage: torch.dtype) -> None:
    step = step_of((16, 8, 8), torch.float32)
    stored = sample(step, torch.randn_like(step.mean)).to(storage)
    at_rollout, at_training = log_prob(step, stored), log_prob(step, stored.clone())
    assert torch.equal(at_rollout, at_training)
    assert torch.equal((at_training - at_rollout).exp(), torch.ones(5))


@pytest.mark.parametrize("threads", [1, 2])
def test_a_row_has_the_same_density_alone_and_in_any_batch(threads: int) -> None:
    mean, x_next = torch.randn(2, 12, 16, 64, 64)
    step = GaussianStep(mean=mean, std=torch.linspace(0.1, 2, 12).reshape(12, 1, 1, 1))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        whole = log_prob(step, x_next)
        for size in (1, 2, 5, 7):
            parts = [
                log_prob(GaussianStep(step.mean[rows], step.std[rows]), x_next[rows])
                for rows in torch.arange(12).split(size)
            ]
            assert torch.equal(torch.cat(parts), whole)
    finally:
        torch.set_num_threads(before)


@pytest.mark.golden
@pytest.mark.parametrize(("storage", "low", "high"), [(torch.float16, 2e-6, 6e-6), (torch.bfloat16, 1e-5, 5e-5)])
def test_rounding_after_the_density_costs_as_much_as_the_clip_range(storage, low: float, high: float) -> None:
    """A step of 65 536 elements, rounded only for storage; Flow-GRPO clips at 1e-4 and 1e-5."""
    mean = torch.randn(8, 16, 64, 64)
    step = GaussianStep(mean=mean, std=torch.full((8, 1, 1, 1), 0.35))
    drawn = sample(step, torch.randn_like(mean))
    error = (log_prob(step, drawn.to(storage)) - log_prob(step, drawn)).abs().mean()
    assert low < float(error) < high


def test_compute_dtype_upcasts_half_and_keeps_double() -> None:
    half, single, double = (torch.zeros(1, dtype=d) for d in (torch.bfloat16, torch.float32, torch.float64))
    assert compute_dtype(half) == torch.float32
    assert compute_dtype(half, single) == torch.float32
    assert compute_dtype(half, double) == torch.float64


def test_rows_are_made_from_scalars_and_vectors_and_nothing_else() -> None:
    like = torch.zeros(3, 2, 2)
    assert as_rows(0.5, like).tolist() == [0.5] * 3
    assert as_rows(torch.tensor([1, 2, 3]), like, dtype=torch.int64).tolist() == [1, 2, 3]
    assert broadcast_rows(as_rows(1.0, like), like).shape == (3, 1, 1)
    with pytest.raises(ValueError, match="3 rows"):
        as_rows(torch.zeros(2), like)
    with pytest.raises(ValueError, match="3 rows"):
        as_rows(torch.zeros(1), like)


@pytest.mark.parametrize("shape", LATENT_SHAPES)
def test_mean_over_latent_leaves_the_rows(shape: tuple[int, ...]) -> None:
    values: Tensor = torch.arange(4.0).reshape(4, *([1] * len(shape))).expand(4, *shape)
    assert mean_over_latent(values).tolist() == [0, 1, 2, 3]
