from __future__ import annotations

import numpy as np
import pytest

from difalign.report.records import SampleRecord
from difalign.report.statistics import (
    bootstrap_interval,
    gain_by_kind,
    pair_scores,
    paired_gain,
    prompt_means,
    shared_scores,
    summarise_gain,
)


def record(prompt_index: int, seed: int, total: float, kind: str = "single") -> SampleRecord:
    return SampleRecord(f"prompt {prompt_index}", kind, seed, {"total": total}, prompt_index)


def test_seeds_are_averaged_within_their_prompt() -> None:
    means = prompt_means([1.0, 3.0, 10.0], [5, 5, 2])
    assert means.tolist() == [10.0, 2.0]  # in ascending order of the prompt's number


def test_interval_matches_the_normal_closed_form() -> None:
    values = np.random.default_rng(0).normal(0.3, 2.0, size=2_000)
    half_width = 1.959964 * values.std() / np.sqrt(values.size)  # the bootstrap's variance has no ddof
    interval = bootstrap_interval(values, np.random.default_rng(1), resamples=20_000)
    assert interval == pytest.approx((values.mean() - half_width, values.mean() + half_width), abs=0.04 * half_width)


def test_level_sets_the_width() -> None:
    values = np.random.default_rng(0).normal(size=1_000)
    interval = bootstrap_interval(values, np.random.default_rng(1), level=0.5)
    assert interval is not None
    assert interval[1] - interval[0] == pytest.approx(2 * 0.67449 * values.std() / np.sqrt(1_000), rel=0.05)


def test_interval_covers_the_true_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(400):
        interval = bootstrap_interval(rng.exponential(1.0, size=80) - 1.0, rng, resamples=400)
        assert interval is not None
        covered += interval[0] <= 0.0 <= interval[1]
    assert 0.90 <= covered / 400 <= 0.98  # 0.95 less the small-sample bias of a skewed law; standard error 0.012


def test_one_prompt_has_a_gain_but_no_interval() -> None:
    gain = paired_gain([0.2, 0.4], [0.5, 0.7], [3, 3], seed=0)
    assert (gain.n, gain.ci95) == (1, None)
    assert gain.gain == pytest.approx(0.3)


def test_equal_models_have_a_gain_of_exactly_zero() -> None:
    scores = np.random.default_rng(0).random(20)
    gain = paired_gain(scores, scores, np.arange(20), seed=0)
    assert (gain.gain, gain.ci95) == (0.0, (0.0, 0.0))


def test_repeating_every_seed_does_not_feign_certainty() -> None:
    rng = np.random.default_rng(0)
    base, tuned = rng.random(30), rng.random(30)
    once = paired_gain(base, tuned, np.arange(30), seed=1)
    often = paired_gain(np.repeat(base, 16), np.repeat(tuned, 16), np.repeat(np.arange(30), 16), seed=1)
    assert once.ci95 is not None
    assert often.ci95 == pytest.approx(once.ci95, abs=1e-12)
    assert often.n == 30


def test_pairing_removes_what_both_models_share() -> None:
    rng = np.random.default_rng(0)
    hardness = rng.normal(0, 10, size=50)  # prompts differ wildly, the gain does not
    gain = paired_gain(hardness, hardness + 0.1 + rng.normal(0, 0.01, size=50), np.arange(50), seed=0)
    assert gain.ci95 is not None
    assert 0.09 < gain.ci95[0] < gain.ci95[1] < 0.11


def test_swapping_the_models_mirrors_the_interval() -> None:
    rng = np.random.default_rng(0)
    base, tuned, prompt = rng.random(40), rng.random(40), np.arange(40)
    forth, back = paired_gain(base, tuned, prompt, seed=3), paired_gain(tuned, base, prompt, seed=3)
    assert forth.ci95 is not None
    assert back.ci95 == pytest.approx((-forth.ci95[1], -forth.ci95[0]), abs=1e-12)


def test_same_seed_same_interval_and_other_seed_another() -> None:
    rng = np.random.default_rng(0)
    base, tuned, prompt = rng.random(40), rng.random(40), np.arange(40)
    first = paired_gain(base, tuned, prompt, seed=3)
    assert paired_gain(base, tuned, prompt, seed=3) == first
    assert paired_gain(base, tuned, prompt, seed=4).ci95 != first.ci95


@pytest.mark.parametrize(
    ("base", "tuned", "prompt", "message"),
    [
        ([0.1], [0.1, 0.2], [0, 1], "equally long"),
        ([], [], [], "not empty"),
        ([0.1, float("nan")], [0.1, 0.2], [0, 1], "not finite"),
    ],
)
def test_bad_scores_are_refused(base: list[float], tuned: list[float], prompt: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        paired_gain(base, tuned, prompt, seed=0)


@pytest.mark.parametrize("level", [0.0, 1.0, 95.0])
def test_a_level_outside_its_range_is_refused(level: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        bootstrap_interval([1.0, 2.0], np.random.default_rng(0), level=level)


def test_scores_are_matched_by_prompt_and_seed_whatever_the_order() -> None:
    base = [record(0, 0, 0.1), record(0, 1, 0.2), record(1, 0, 0.3)]
    tuned = [record(1, 0, 0.6), record(0, 1, 0.5), record(0, 0, 0.4)]
    assert pair_scores(base, tuned).tuned.tolist() == [0.4, 0.5, 0.6]


def test_unmatched_or_repeated_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="2 samples have no partner"):
        pair_scores([record(0, 0, 0.1)], [record(0, 1, 0.1)])
    with pytest.raises(ValueError, match="twice"):
        pair_scores([record(0, 0, 0.1)] * 2, [record(0, 0, 0.1)] * 2)
    with pytest.raises(ValueError, match="no score 'strict'"):
        pair_scores([record(0, 0, 0.1)], [record(0, 0, 0.1)], score="strict")


def test_each_kind_has_its_own_gain() -> None:
    base = [record(i, 0, 0.5, kind="ab"[i % 2]) for i in range(8)]
    tuned = [record(i, 0, 0.5 + 0.1 * (i % 2), kind="ab"[i % 2]) for i in range(8)]
    gains = gain_by_kind(pair_scores(base, tuned), seed=0)
    assert gains["a"].gain == 0.0
    assert gains["b"].gain == pytest.approx(0.1)
    assert gains["a"].n == gains["b"].n == 4


def test_summary_weighs_prompts_equally_whatever_their_seeds() -> None:
    base = [record(0, seed, 0.0) for seed in range(9)] + [record(1, 0, 0.0)]
    tuned = [record(0, seed, 0.0) for seed in range(9)] + [record(1, 0, 1.0)]
    summary = summarise_gain(base, tuned, seed=0)
    assert (summary["gain"], summary["prompts"], summary["samples"]) == (0.5, 2, 10)
    assert summary["per_category"]["single"]["n"] == 2


def test_scores_that_some_record_lacks_are_not_shared() -> None:
    full = SampleRecord("p", "k", 0, {"strict": 1.0, "total": 0.5, "odd": float("nan")}, 0)
    assert shared_scores([full, record(1, 0, 0.1)]) == ("total",)
    assert shared_scores([full]) == ("total", "strict")
