"""How sure a gain is: paired bootstrap over prompts.

Two models are compared on the same prompts and the same noise. The prompt is the unit: the seeds of one prompt
are averaged first, because they are not independent draws of what a user might ask. The interval is the
percentile interval of the bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, ch. 13).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from difalign.report.records import SampleRecord

DEFAULT_RESAMPLES = 10_000
_ROWS_AT_ONCE = 1_000  # bounds memory: this many resamples times the number of prompts


@dataclass(frozen=True, slots=True)
class PairedGain:
    """Mean scores of two models on the same prompts, and the interval of their difference."""

    base: float
    tuned: float
    gain: float
    ci95: tuple[float, float] | None  # None with fewer than two prompts: nothing to resample
    n: int  # prompts


@dataclass(frozen=True, slots=True)
class PairedScores:
    """One score of both models, row by row the same prompt and seed."""

    base: NDArray[np.float64]  # [M]
    tuned: NDArray[np.float64]  # [M]
    prompt: NDArray[np.int64]  # [M]
    kind: tuple[str, ...]  # M


def prompt_means(values: ArrayLike, prompt: ArrayLike) -> NDArray[np.float64]:
    """Mean of the values of each prompt, [M] and [M] -> [P], in ascending order of the prompt's number."""
    _, position, counts = np.unique(np.asarray(prompt), return_inverse=True, return_counts=True)
    sums = np.bincount(position.reshape(-1), weights=np.asarray(values, dtype=np.float64))
    return sums / counts


def bootstrap_interval(
    values: ArrayLike, rng: np.random.Generator, *, level: float = 0.95, resamples: int = DEFAULT_RESAMPLES
) -> tuple[float, float] | None:
    """Percentile interval for the mean of independent values [P]; None when P < 2.

    With few values (below about 10) the interval is too narrow: it covers less often than ``level`` says.
    """
    values = np.asarray(values, dtype=np.float64)
    if not 0.0 < level < 1.0:
        raise ValueError(f"level is {level}; it must lie between 0 and 1, such as 0.95")
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}; use at least 1, such as {DEFAULT_RESAMPLES}")
    if values.size < 2:
        return None
    means = np.empty(resamples)
    for start in range(0, resamples, _ROWS_AT_ONCE):
        rows = min(_ROWS_AT_ONCE, resamples - start)
        means[start : start + rows] = values[rng.integers(values.size, size=(rows, values.size))].mean(axis=1)
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(means, [tail, 1.0 - tail])
    return float(low), float(high)


def paired_gain(
    base: ArrayLike, tuned: ArrayLike, prompt: ArrayLike, *, seed: int, resamples: int = DEFAULT_RESAMPLES
) -> PairedGain:
    """The gain of ``tuned`` over ``base`` with its 95 % interval.

    Args:
        base: [M] scores of the base model, one a sample.
        tuned: [M] scores of the tuned model on the same prompts and noise.
        prompt: [M] the number of each sample's prompt; samples that share it are averaged first.
        seed: of the resampling; the same seed gives the same interval.
        resamples: number of bootstrap resamples.

    Raises:
        ValueError: if the lengths differ, there is no sample, or a score is not finite.
    """
    base, tuned = np.asarray(base, dtype=np.float64), np.asarray(tuned, dtype=np.float64)
    if not (base.shape == tuned.shape == np.shape(prompt)) or base.ndim != 1 or base.size == 0:
        raise ValueError(
            f"shapes {base.shape}, {tuned.shape}, {np.shape(prompt)}: base, tuned and prompt must be equally long, "
            "not empty, one value a sample"
        )
    if not (np.isfinite(base).all() and np.isfinite(tuned).all()):
        raise ValueError("a score is not finite; a gain over it means nothing: drop the sample from both models")
    base_means, tuned_means = prompt_means(base, prompt), prompt_means(tuned, prompt)
    interval = bootstrap_interval(tuned_means - base_means, np.random.default_rng(seed), resamples=resamples)
    return PairedGain(
        base=float(base_means.mean()),
        tuned=float(tuned_means.mean()),
        gain=float((tuned_means - base_means).mean()),
        ci95=interval,
        n=int(base_means.size),
    )


def scored_in_both(
    base: Sequence[SampleRecord], tuned: Sequence[SampleRecord]
) -> tuple[list[SampleRecord], list[SampleRecord]]:
    """Both evaluations without the samples that either could not score, so that they stay pairs."""
    failed = {record.key for record in (*base, *tuned) if math.isnan(record.scores.get("total", 0.0))}
    return [record for record in base if record.key not in failed], [r for r in tuned if r.key not in failed]


def pair_scores(base: Sequence[SampleRecord], tuned: Sequence[SampleRecord], *, score: str = "total") -> PairedScores:
    """One score of two evaluations, matched by prompt and seed, in the order of ``base``.

    Raises:
        ValueError: if the two do not hold the same samples, one holds a sample twice, or the score is missing.
    """
    base_by_key, tuned_by_key = _by_key(base), _by_key(tuned)
    if base_by_key.keys() != tuned_by_key.keys():
        unmatched = len(base_by_key.keys() ^ tuned_by_key.keys())
        raise ValueError(f"{unmatched} samples have no partner; evaluate both models on the same prompts and seeds")
    for record in (*base, *tuned):
        if score not in record.scores:
            raise ValueError(f"no score {score!r} for {record.prompt!r}; it has {', '.join(record.scores) or 'none'}")
    return PairedScores(
        base=np.array([record.scores[score] for record in base], dtype=np.float64),
        tuned=np.array([tuned_by_key[record.key].scores[score] for record in base], dtype=np.float64),
        prompt=np.array([record.prompt_index for record in base], dtype=np.int64),
        kind=tuple(record.kind for record in base),
    )


def gain_by_kind(scores: PairedScores, *, seed: int, resamples: int = DEFAULT_RESAMPLES) -> dict[str, PairedGain]:
    """The gain within each kind of prompt, in order of first appearance."""
    gains: dict[str, PairedGain] = {}
    for kind in dict.fromkeys(scores.kind):
        rows = np.array([other == kind for other in scores.kind])
        gains[kind] = paired_gain(
            scores.base[rows], scores.tuned[rows], scores.prompt[rows], seed=seed, resamples=resamples
        )
    return gains


def shared_scores(records: Sequence[SampleRecord]) -> tuple[str, ...]:
    """The names of the scores that every record has and that are finite throughout, "total" first."""
    if not records:
        return ()
    names = [name for name in records[0].scores if all(_is_finite(record, name) for record in records)]
    return tuple(sorted(names, key=lambda name: name != "total"))


def summarise_gain(
    base: Sequence[SampleRecord],
    tuned: Sequence[SampleRecord],
    *,
    seed: int,
    resamples: int = DEFAULT_RESAMPLES,
) -> dict[str, Any]:
    """The part of ``summary.json`` that compares the two evaluations, on the samples that have a score in both.

    Returns:
        ``base``, ``tuned``, ``gain``, ``gain_ci95`` of "total"; ``prompts`` and ``samples``; ``per_category``:
        kind -> base, tuned, gain, ci95, n; ``scores``: the same figures for every score, all kinds together.
    """
    base, tuned = scored_in_both(base, tuned)
    total = pair_scores(base, tuned)
    overall = paired_gain(total.base, total.tuned, total.prompt, seed=seed, resamples=resamples)
    kinds = gain_by_kind(total, seed=seed, resamples=resamples)
    scores = {}
    for name in shared_scores((*base, *tuned)):
        pairs = pair_scores(base, tuned, score=name)
        scores[name] = _as_json(paired_gain(pairs.base, pairs.tuned, pairs.prompt, seed=seed, resamples=resamples))
    return {
        "base": overall.base,
        "tuned": overall.tuned,
        "gain": overall.gain,
        "gain_ci95": None if overall.ci95 is None else list(overall.ci95),
        "prompts": overall.n,
        "samples": len(base),
        "per_category": {kind: _as_json(gain) for kind, gain in kinds.items()},
        "scores": scores,
    }


def _as_json(gain: PairedGain) -> dict[str, Any]:
    interval = None if gain.ci95 is None else list(gain.ci95)
    return {"base": gain.base, "tuned": gain.tuned, "gain": gain.gain, "ci95": interval, "n": gain.n}


def _by_key(records: Sequence[SampleRecord]) -> dict[tuple[int, int], SampleRecord]:
    by_key = {record.key: record for record in records}
    if len(by_key) != len(records):
        raise ValueError("a sample stands twice: (prompt_index, seed) must be unique within an evaluation")
    return by_key


def _is_finite(record: SampleRecord, name: str) -> bool:
    return math.isfinite(record.scores.get(name, math.nan))
