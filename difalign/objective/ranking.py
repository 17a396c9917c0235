"""How well one score ranks the samples of a prompt as another does: the worth of a score of unfinished samples.

All figures are of single prompts and then averaged with their standard error: a correlation over all samples would
mostly say that some prompts are easier than others. Arithmetic is float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

# From 5 to 95 percent, as TTSnap's released evaluation averages over them (TTSnap: arXiv 2511.22242).
KEPT_SHARES: tuple[Fraction, ...] = tuple(Fraction(k, 20) for k in range(1, 20))


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over prompts."""

    mean: float  # NaN if no prompt has a value
    standard_error: float  # of the mean, from the sample's standard deviation; NaN below two prompts
    prompts: int  # that have a value; a prompt whose scores are all equal has no correlation


@dataclass(frozen=True, slots=True)
class Agreement:
    """How a score agrees with the score of the finished samples, prompt by prompt."""

    spearman: Estimate
    kendall: Estimate  # tau-b
    survival: Estimate  # Tacc: how often the best sample is kept, over the kept shares
    shortfall: Estimate  # Tgap: what the best kept sample lacks to the best of all, over the kept shares
    squared_error: Estimate  # in the unit of the score, squared


def average_ranks(values: Tensor) -> Tensor:
    """Ranks from 1 of values [N], equal values sharing the mean of theirs, [N] float64."""
    _, place, count = values.unique(sorted=True, return_inverse=True, return_counts=True)
    last = count.cumsum(0).double()
    return (last - (count.double() - 1) / 2)[place]


def spearman(predicted: Tensor, actual: Tensor) -> float:
    """Spearman's rank correlation of two scores [N], the correlation of average ranks; NaN if one is constant."""
    _check_pair(predicted, actual)
    x, y = average_ranks(predicted), average_ranks(actual)
    x, y = x - x.mean(), y - y.mean()
    scale = float((x.square().sum() * y.square().sum()).sqrt())
    return float(x @ y) / scale if scale > 0 else math.nan


def kendall_tau_b(predicted: Tensor, actual: Tensor) -> float:
    """Kendall's rank correlation with its correction for ties, tau-b, of two scores [N]; NaN if one is constant."""
    _check_pair(predicted, actual)
    x, y = _signs(predicted), _signs(actual)
    scale = math.sqrt(float(x.abs().sum()) * float(y.abs().sum()))
    return float((x * y).sum()) / scale if scale > 0 else math.nan


def shortfall(predicted: Tensor, actual: Tensor, share: Fraction) -> float:
    """What the best kept sample lacks to the best of all, where the ``share`` that is predicted best is kept.

    Kept are floor(share N), but at least one; among equal predictions those that come first.

    Raises:
        ValueError: if the share is not in (0, 1], or the scores do not match.
    """
    _check_pair(predicted, actual)
    if not 0 < share <= 1:
        raise ValueError(f"share = {share}: keep more than nothing and at most everything, in (0, 1]")
    number = max(1, math.floor(share * predicted.numel()))
    kept = predicted.argsort(descending=True, stable=True)[:number]
    return float(actual.double().max() - actual.double()[kept].max())


def mean_shortfall(predicted: Tensor, actual: Tensor, shares: Sequence[Fraction] = KEPT_SHARES) -> float:
    """Tgap: ``shortfall`` averaged over the kept shares."""
    return sum(shortfall(predicted, actual, share) for share in shares) / len(shares)


def mean_survival(predicted: Tensor, actual: Tensor, shares: Sequence[Fraction] = KEPT_SHARES) -> float:
    """Tacc: the share of the kept shares at which a best sample is among the kept."""
    return sum(shortfall(predicted, actual, share) == 0.0 for share in shares) / len(shares)


def mean_squared_error(predicted: Tensor, actual: Tensor) -> float:
    """The mean squared difference of two scores [N]."""
    _check_pair(predicted, actual)
    return float((predicted.double() - actual.double()).square().mean())


_MEASURES: Mapping[str, Callable[[Tensor, Tensor], float]] = {
    "spearman": spearman,
    "kendall": kendall_tau_b,
    "survival": mean_survival,
    "shortfall": mean_shortfall,
    "squared_error": mean_squared_error,
}


def agreement(predicted: Tensor, actual: Tensor, prompt: Tensor) -> Agreement:
    """Every measure of one prompt at a time, then its mean and standard error over prompts.

    Args:
        predicted: scores of unfinished samples, [N].
        actual: scores of the same samples once finished, [N].
        prompt: which samples belong together, [N] int64.

    Raises:
        ValueError: if the shapes differ or a score is not finite.
    """
    if prompt.shape != predicted.shape:
        raise ValueError(f"prompt has shape {tuple(prompt.shape)}, the scores {tuple(predicted.shape)}: one a sample")
    _check_pair(predicted, actual)
    groups = [prompt == one for one in prompt.unique()]
    return Agreement(
        **{
            name: over_prompts([measure(predicted[rows], actual[rows]) for rows in groups])
            for name, measure in _MEASURES.items()
        }
    )


def over_prompts(values: Sequence[float]) -> Estimate:
    """Mean and standard error of one value a prompt; a prompt without one (NaN) is left out and not counted."""
    known = torch.tensor([value for value in values if not math.isnan(value)], dtype=torch.float64)
    number = known.numel()
    return Estimate(
        mean=float(known.mean()) if number > 0 else math.nan,
        standard_error=float(known.std(correction=1)) / math.sqrt(number) if number > 1 else math.nan,
        prompts=number,
    )


def _signs(values: Tensor) -> Tensor:
    """The sign of the difference of every two values, [N, N] float64."""
    return (values[:, None].double() - values[None, :].double()).sign()


def _check_pair(predicted: Tensor, actual: Tensor) -> None:
    if predicted.ndim != 1 or predicted.shape != actual.shape or predicted.numel() == 0:
        raise ValueError(
            f"scores of shapes {tuple(predicted.shape)} and {tuple(actual.shape)}: give one predicted and one actual "
            "score a sample, and at least one sample"
        )
    if not bool(predicted.isfinite().all() and actual.isfinite().all()):
        raise ValueError("a score is not finite and cannot be ranked: leave its sample out of both")
