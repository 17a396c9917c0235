"""What scores of a folder of pictures say: their mean with its interval, their spread, and who is better of two."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from difalign.report.statistics import (
    DEFAULT_RESAMPLES,
    PairedGain,
    bootstrap_interval,
    paired_gain,
    prompt_means,
)


@dataclass(frozen=True, slots=True)
class ScoreSummary:
    """One reward over many pictures."""

    pictures: int  # with a score
    failed: int  # without
    prompts: int
    mean: float | None  # of the prompts' means; None without a score, as all below
    ci95: tuple[float, float] | None  # of the mean; None with fewer than two units
    std: float | None  # over all pictures
    within_prompt_std: float | None  # None where no prompt has two pictures
    quartiles: tuple[float, float, float, float, float] | None  # lowest, 25 %, middle, 75 %, highest


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two folders on the same prompts."""

    gain: PairedGain
    win_rate: float  # share of units in which tuned is better, ties counted half
    win_rate_ci95: tuple[float, float] | None
    left_out: int  # pairs of which one side has no score
    unit: str  # "prompts", or "pictures" where all have one prompt


def summarise_scores(
    scores: ArrayLike, prompt: ArrayLike, *, seed: int, resamples: int = DEFAULT_RESAMPLES
) -> ScoreSummary:
    """Mean, spread and quartiles of scores [N], NaN where there is none, with a bootstrap interval of the mean.

    The unit that is drawn is the prompt, whose pictures are averaged first; where all pictures have one prompt it is
    the picture.

    Args:
        scores: [N].
        prompt: [N], the number of each picture's prompt.
        seed: of the resampling.
        resamples: number of bootstrap resamples.

    Raises:
        ValueError: if the lengths differ.
    """
    values, group = np.asarray(scores, dtype=np.float64), np.asarray(prompt)
    if values.ndim != 1 or values.shape != group.shape:
        raise ValueError(f"shapes {values.shape} and {group.shape}: give one prompt's number a score")
    kept = np.isfinite(values)
    values, group = values[kept], group[kept]
    failed, prompts = int((~kept).sum()), int(np.unique(group).size)
    if not values.size:
        return ScoreSummary(0, failed, 0, None, None, None, None, None)
    units = prompt_means(values, _unit(group))
    levels = np.quantile(values, [0.0, 0.25, 0.5, 0.75, 1.0]).tolist()
    return ScoreSummary(
        pictures=int(values.size),
        failed=failed,
        prompts=prompts,
        mean=float(units.mean()),
        ci95=bootstrap_interval(units, np.random.default_rng(seed), resamples=resamples),
        std=float(values.std(ddof=1)) if values.size > 1 else None,
        within_prompt_std=_within(values, group),
        quartiles=(levels[0], levels[1], levels[2], levels[3], levels[4]),
    )


def compare_scores(
    base: ArrayLike, tuned: ArrayLike, prompt: ArrayLike, *, seed: int, resamples: int = DEFAULT_RESAMPLES
) -> Comparison | None:
    """The gain of ``tuned`` over ``base`` and how often it is better; None where no pair has both scores.

    Args:
        base: [M] scores, NaN where there is none.
        tuned: [M] of the pictures of the same prompts, pair by pair.
        prompt: [M].
        seed: of the resampling.
        resamples: number of bootstrap resamples.
    """
    before, after = np.asarray(base, dtype=np.float64), np.asarray(tuned, dtype=np.float64)
    kept = np.isfinite(before) & np.isfinite(after)
    if not kept.any():
        return None
    unit = _unit(np.asarray(prompt)[kept])
    difference = prompt_means(after[kept] - before[kept], unit)
    wins = (difference > 0) + 0.5 * (difference == 0)
    return Comparison(
        gain=paired_gain(before[kept], after[kept], unit, seed=seed, resamples=resamples),
        win_rate=float(wins.mean()),
        win_rate_ci95=bootstrap_interval(wins, np.random.default_rng(seed), resamples=resamples),
        left_out=int((~kept).sum()),
        unit="prompts" if np.unique(np.asarray(prompt)[kept]).size > 1 else "pictures",
    )


def _unit(group: NDArray[np.generic]) -> NDArray[np.generic]:
    """What is drawn: prompts, or single pictures where there is only one prompt."""
    return group if np.unique(group).size > 1 else np.arange(group.size)


def _within(values: NDArray[np.float64], group: NDArray[np.generic]) -> float | None:
    """Standard deviation within prompts, pooled: sqrt(squares around the prompts' means / degrees of freedom)."""
    _, position = np.unique(group, return_inverse=True)
    freedom = values.size - int(position.max()) - 1
    if freedom < 1:
        return None
    deviation = values - prompt_means(values, group)[position.reshape(-1)]
    return float(np.sqrt((deviation**2).sum() / freedom))
