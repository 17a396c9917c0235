"""Means, intervals and win rates of scores against what can be said in closed form."""

from __future__ import annotations

import numpy as np
import pytest

from difalign.report.score_summary import compare_scores, summarise_scores


def test_prompts_count_alike_however_many_pictures_they_have():
    summary = summarise_scores([1.0, 1.0, 1.0, 5.0], [0, 0, 0, 1], seed=0)
    assert summary.mean == 3.0
    assert (summary.pictures, summary.prompts, summary.failed) == (4, 2, 0)


def test_the_interval_is_that_of_a_mean():
    rng = np.random.default_rng(0)
    values = rng.normal(2.0, 1.5, size=400)
    summary = summarise_scores(values, range(400), seed=3, resamples=4000)
    assert summary.ci95 is not None
    half = 1.96 * values.std(ddof=1) / np.sqrt(400)
    assert summary.ci95 == pytest.approx((values.mean() - half, values.mean() + half), abs=0.06 * half)
    assert summary == summarise_scores(values, range(400), seed=3, resamples=4000)


def test_one_prompt_leaves_pictures_to_be_drawn():
    summary = summarise_scores([1.0, 2.0, 3.0], [7, 7, 7], seed=0)
    assert summary.ci95 is not None
    assert summary.ci95[0] < 2.0 < summary.ci95[1]
    assert summary.mean == 2.0


def test_spread_within_prompts_leaves_out_what_lies_between_them():
    summary = summarise_scores([0.0, 2.0, 100.0, 102.0], [0, 0, 1, 1], seed=0)
    assert summary.within_prompt_std == pytest.approx(np.sqrt(2.0))  # (1 + 1 + 1 + 1) / (4 - 2)
    assert summarise_scores([0.0, 1.0], [0, 1], seed=0).within_prompt_std is None


def test_what_failed_is_counted_and_nothing_else():
    summary = summarise_scores([1.0, np.nan, 3.0], [0, 0, 1], seed=0)
    assert (summary.pictures, summary.failed, summary.mean) == (2, 1, 2.0)
    empty = summarise_scores([np.nan], [0], seed=0)
    assert (empty.pictures, empty.failed, empty.mean, empty.quartiles) == (0, 1, None, None)
    with pytest.raises(ValueError, match="one prompt's number"):
        summarise_scores([1.0], [0, 1], seed=0)


def test_win_rate_counts_prompts_and_halves_ties():
    base, tuned = [0.0, 0.0, 1.0, 1.0, 2.0], [1.0, -0.5, 1.0, 0.0, 3.0]
    comparison = compare_scores(base, tuned, [0, 0, 1, 2, 3], seed=0)
    assert comparison is not None
    # Prompt 0 gains 0.25 on average, 1 ties, 2 loses, 3 gains.
    assert comparison.win_rate == pytest.approx(2.5 / 4)
    assert comparison.unit == "prompts"
    assert comparison.gain.gain == pytest.approx((0.25 + 0.0 - 1.0 + 1.0) / 4)


def test_a_constant_gain_is_certain():
    base = np.arange(12.0)
    comparison = compare_scores(base, base + 0.5, np.arange(12) // 2, seed=0)
    assert comparison is not None
    assert comparison.gain.ci95 == pytest.approx((0.5, 0.5))
    assert comparison.win_rate_ci95 == (1.0, 1.0)


def test_pairs_with_one_score_are_left_out_and_counted():
    comparison = compare_scores([np.nan, 1.0, 1.0], [9.0, 2.0, np.nan], [0, 1, 2], seed=0)
    assert comparison is not None
    assert (comparison.left_out, comparison.gain.n, comparison.gain.gain) == (2, 1, 1.0)
    assert compare_scores([np.nan], [1.0], [0], seed=0) is None
