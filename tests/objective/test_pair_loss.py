"""Losses of pairs: ln 2 at the start with gradients of half beta, the clip of each ratio, rows in pairs."""

from __future__ import annotations

import math

import pytest
import torch

from difalign.objective.surrogate import Surrogate, pair_logistic


def double(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def pair(
    log_prob: torch.Tensor, reference: torch.Tensor, *, clip: float | None = 0.1, weight: torch.Tensor | None = None
) -> Surrogate:
    old = torch.zeros_like(reference)
    return pair_logistic(log_prob, old, reference, beta=0.1, clip=clip, clip_range=1e-3, weight=weight)


@pytest.mark.golden
@pytest.mark.parametrize("clip", [0.1, None])
def test_at_the_reference_it_is_ln_two(clip: float | None) -> None:
    """D3PO: -beta/2 for the preferred sample, beta/2 for the rejected, and a mean over rows is a mean over pairs."""
    log_prob = double(-1.0, -2.0).requires_grad_()
    result = pair(log_prob, double(-1.0, -2.0), clip=clip)
    assert result.loss.tolist() == pytest.approx([math.log(2)] * 2, abs=1e-12)
    result.loss.mean().backward()
    assert log_prob.grad is not None
    assert log_prob.grad.tolist() == pytest.approx([-0.05, 0.05], abs=1e-12)


def test_two_pairs_in_closed_form() -> None:
    log_prob, reference = double(0.02, -0.03, 0.05, 0.01), double(0.0, 0.01, -0.02, 0.0)
    margins = [0.1 * (0.02 + 0.04), 0.1 * (0.07 - 0.01)]
    expected = [math.log1p(math.exp(-margin)) for margin in margins for _ in range(2)]
    assert pair(log_prob, reference).loss.tolist() == pytest.approx(expected, abs=1e-12)


def test_each_ratio_is_clipped() -> None:
    log_prob = double(0.5, 0.02).requires_grad_()
    result = pair(log_prob, double(0.0, 0.0))
    assert float(result.loss[0].detach()) == pytest.approx(
        math.log1p(math.exp(-0.1 * (math.log(1.1) - 0.02))), abs=1e-12
    )
    result.loss.mean().backward()
    assert log_prob.grad is not None
    assert float(log_prob.grad[0]) == 0
    assert float(log_prob.grad[1]) > 0
    without = pair(double(0.5, 0.02), double(0.0, 0.0), clip=None)
    assert float(without.loss[0]) == pytest.approx(math.log1p(math.exp(-0.1 * 0.48)), abs=1e-12)


def test_ratios_that_are_logged_are_those_to_the_sampling_policy() -> None:
    result = pair(double(0.002, 0.0), double(7.0, 7.0))
    assert result.ratio.tolist() == pytest.approx([math.exp(0.002), 1.0])
    assert float(result.clip_fraction) == 0.5


def test_weights_multiply_the_pair() -> None:
    log_prob, reference = double(0.1, 0.0, 0.0, 0.1), double(0.0, 0.0, 0.0, 0.0)
    plain = pair(log_prob, reference).loss
    assert torch.equal(pair(log_prob, reference, weight=double(2, 2, 3, 3)).loss, plain * double(2, 2, 3, 3))


def test_rows_must_come_in_pairs_and_shapes_agree() -> None:
    with pytest.raises(ValueError, match="even number of rows, got 3"):
        pair(double(0, 0, 0), double(0, 0, 0))
    with pytest.raises(ValueError, match=r"reference_log_prob must have the shape .* got \(1,\)"):
        pair_logistic(double(0, 0), double(0, 0), double(0), beta=0.1, clip=None, clip_range=0.1)
