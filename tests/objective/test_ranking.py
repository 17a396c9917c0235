"""Measures of ranking: equal to scipy with and without ties, cases by hand, prompts as the unit."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import scipy.stats
import torch

from difalign.objective.ranking import (
    KEPT_SHARES,
    agreement,
    average_ranks,
    kendall_tau_b,
    mean_shortfall,
    mean_squared_error,
    mean_survival,
    over_prompts,
    shortfall,
    spearman,
)


def scores(seed: int, number: int, *, ties: bool) -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(seed)
    actual = torch.randn(number, generator=source, dtype=torch.float64)
    predicted = actual + torch.randn(number, generator=source, dtype=torch.float64)
    return (predicted.round(), actual.round()) if ties else (predicted, actual)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_rank_correlations_equal_scipy(seed: int, ties: bool):
    predicted, actual = scores(seed, 37, ties=ties)
    assert spearman(predicted, actual) == pytest.approx(scipy.stats.spearmanr(predicted, actual).statistic, abs=1e-12)
    tau = scipy.stats.kendalltau(predicted, actual, variant="b").statistic
    assert kendall_tau_b(predicted, actual) == pytest.approx(tau, abs=1e-12)
    assert average_ranks(predicted).tolist() == scipy.stats.rankdata(predicted).tolist()


def test_the_score_itself_ranks_perfectly():
    predicted, actual = scores(3, 20, ties=False)
    assert spearman(actual, actual) == pytest.approx(1, abs=1e-12)
    assert kendall_tau_b(actual, -actual) == -1
    assert (mean_survival(actual, actual), mean_shortfall(actual, actual)) == (1, 0)
    assert mean_squared_error(actual, actual) == 0
    assert mean_shortfall(predicted, actual) > 0


def test_only_the_order_counts():
    predicted, actual = scores(4, 25, ties=False)
    for measure in (spearman, kendall_tau_b, mean_survival, mean_shortfall):
        assert measure(predicted.exp(), actual) == pytest.approx(measure(predicted, actual), abs=1e-12)


@pytest.mark.golden
def test_four_samples_by_hand():
    """The best of four is predicted third: it is lost where one or two are kept, which is below three quarters."""
    predicted, actual = torch.tensor([0.9, 0.7, 0.5, 0.1]), torch.tensor([2.0, 5.0, 7.0, 1.0])
    assert [shortfall(predicted, actual, Fraction(k, 4)) for k in (1, 2, 3, 4)] == [5, 2, 0, 0]
    assert mean_survival(predicted, actual) == pytest.approx(5 / 19)  # shares .75 to .95
    assert mean_shortfall(predicted, actual) == pytest.approx((9 * 5 + 5 * 2) / 19)  # .05 to .45, then .5 to .7
    assert spearman(predicted, actual) == pytest.approx(0.2)
    assert kendall_tau_b(predicted, actual) == 0
    assert mean_squared_error(predicted, actual) == pytest.approx((1.1**2 + 4.3**2 + 6.5**2 + 0.9**2) / 4)


def test_shares_are_counted_exactly():
    """0.35 * 20 as floats is just above or below 7; a share of 7 / 20 keeps seven of twenty."""
    predicted = -torch.arange(20.0)
    for number in range(1, 21):
        actual = torch.zeros(20)
        actual[number - 1] = 1.0  # the last of those kept
        assert shortfall(predicted, actual, Fraction(number, 20)) == 0
        if number > 1:
            assert shortfall(predicted, actual, Fraction(number - 1, 20)) == 1
    assert len(KEPT_SHARES) == 19


def test_equal_predictions_keep_those_that_come_first():
    predicted, actual = torch.zeros(4), torch.tensor([0.0, 3.0, 1.0, 4.0])
    assert [shortfall(predicted, actual, Fraction(k, 4)) for k in (1, 2, 3, 4)] == [4, 1, 1, 0]


def test_a_best_sample_among_equals_is_enough():
    assert mean_survival(torch.tensor([2.0, 1.0]), torch.tensor([1.0, 1.0])) == 1


def test_prompts_are_the_unit():
    """Two prompts ranked in opposite ways: their mean is 0, however far apart the prompts are."""
    actual = torch.tensor([1.0, 2.0, 3.0, 101.0, 102.0, 103.0])
    predicted = torch.tensor([1.0, 2.0, 3.0, 103.0, 102.0, 101.0])
    prompt = torch.tensor([7, 7, 7, 2, 2, 2])
    found = agreement(predicted, actual, prompt)
    assert found.spearman.mean == pytest.approx(0, abs=1e-12)
    assert found.spearman.standard_error == pytest.approx(1)  # sd of (1, -1) is sqrt 2
    assert found.squared_error.mean == pytest.approx(4 / 3)
    assert scipy.stats.spearmanr(predicted, actual).statistic > 0.7


def test_rows_need_not_lie_together():
    predicted, actual = scores(8, 30, ties=True)
    prompt = torch.arange(30) % 3
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    by_prompt = prompt.argsort(stable=True)
    whole = agreement(predicted[by_prompt], actual[by_prompt], prompt[by_prompt])
    mixed = agreement(predicted[order], actual[order], prompt[order])
    assert mixed.spearman.mean == pytest.approx(whole.spearman.mean, abs=1e-12)
    assert mixed.kendall.standard_error == pytest.approx(whole.kendall.standard_error, abs=1e-12)


def test_a_prompt_without_spread_has_no_correlation():
    found = agreement(
        torch.tensor([1.0, 2.0, 1.0, 2.0]), torch.tensor([5.0, 5.0, 1.0, 2.0]), torch.tensor([0, 0, 1, 1])
    )
    assert (found.spearman.mean, found.spearman.prompts) == (1, 1)
    assert (found.kendall.prompts, found.survival.prompts) == (1, 2)
    assert math.isnan(found.spearman.standard_error)
    assert math.isnan(over_prompts([math.nan]).mean)


def test_standard_error_equals_scipy():
    values = [0.1, 0.5, math.nan, 0.4, -0.2]
    known = [value for value in values if not math.isnan(value)]
    assert over_prompts(values).standard_error == pytest.approx(scipy.stats.sem(known), abs=1e-12)


@pytest.mark.parametrize(
    ("predicted", "actual", "said"),
    [
        (torch.tensor([1.0, math.nan]), torch.zeros(2), "not finite"),
        (torch.zeros(2), torch.zeros(3), r"\(2,\) and \(3,\)"),
        (torch.zeros(0), torch.zeros(0), "at least one sample"),
    ],
)
def test_scores_that_cannot_be_ranked(predicted: torch.Tensor, actual: torch.Tensor, said: str):
    with pytest.raises(ValueError, match=said):
        agreement(predicted, actual, torch.zeros(predicted.shape[0], dtype=torch.int64))


@pytest.mark.parametrize("share", [Fraction(0), Fraction(3, 2)])
def test_shares_that_keep_nothing_or_too_much(share: Fraction):
    with pytest.raises(ValueError, match="in \\(0, 1\\]"):
        shortfall(torch.zeros(2), torch.zeros(2), share)
