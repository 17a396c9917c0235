"""Metrics rows as series over training, and which of them share a panel."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from difalign.report.run_folder import MetricsRow, StoredEvaluation
from difalign.report.words import number

TOTALS = ("seconds", "denoiser_forwards", "reward_calls")  # counted up over the run; not curves of learning
_POSITION = ("rollout", "update")
_MAX_POINTS = 600  # a curve this long still shows every spike at any screen width


@dataclass(frozen=True, slots=True)
class Series:
    """One recorded value over training; y may hold values that are not finite."""

    name: str
    x: NDArray[np.float64]  # [P] rollouts, with fractions for several updates in one rollout
    y: NDArray[np.float64]  # [P]

    @property
    def finite(self) -> NDArray[np.bool_]:
        """Which points can be drawn, [P]."""
        return np.isfinite(self.y)


@dataclass(frozen=True, slots=True)
class Panel:
    """Values that belong on one pair of axes."""

    title: str
    names: tuple[str, ...]  # keys of a metrics row; "components.*" takes every component
    note: str  # how to read it
    core: bool = True  # shown even if it never changes


PANELS = (
    Panel("Reward in training", ("reward", "components.*"), "Mean over the samples of each rollout."),
    Panel("Divergence from the base (KL)", ("kl",), "How far the policy has moved away from the base model."),
    Panel(
        "Probability ratio, mean",
        ("ratio_mean",),
        "New over old policy; exactly 1 at the first update of each rollout.",
    ),
    Panel("Probability ratio, largest deviation", ("ratio_max_deviation",), "Largest distance of any ratio from 1."),
    Panel("Clip fraction", ("clip_fraction",), "Share of steps whose ratio left the clip range."),
    Panel("Gradient norm", ("grad_norm",), "Before clipping."),
    Panel("Groups without variance", ("zero_variance_groups",), "All samples scored alike: nothing to learn from."),
    Panel("Trained interval", ("interval_start",), "First step of the chain that is trained; 0 is the noisiest."),
    Panel("Kept samples", ("kept", "kept_positive", "kept_negative"), "Samples of an update that are learnt from."),
    Panel("Spread of the reward", ("reward_std",), "Standard deviation over samples.", core=False),
    Panel("Loss", ("loss", "policy_loss"), "Follows the advantages; not a measure of progress.", core=False),
    Panel("Learning rate", ("learning_rate",), "Of the optimiser.", core=False),
)


def collect_series(rows: Sequence[MetricsRow]) -> dict[str, Series]:
    """Every numeric value of the rows, nested ones named ``outer.inner``; rows without the value are skipped."""
    positions = rollout_positions(rows)
    points: dict[str, list[tuple[float, float]]] = {}
    for position, row in zip(positions, rows, strict=True):
        for name, value in _flat_numbers(row):
            if name not in _POSITION:
                points.setdefault(name, []).append((position, value))
    series = {}
    for name, pairs in points.items():
        x, y = np.array(pairs, dtype=np.float64).T
        series[name] = Series(name, x, y)
    return series


def rollout_positions(rows: Sequence[MetricsRow]) -> list[float]:
    """Where each row stands on the rollout axis: the k-th of n rows of rollout r at r + k/n.

    A row without a rollout stands one after the row before it.
    """
    rollouts: list[float] = []
    for row in rows:
        rollout = number(row.get("rollout"))
        rollouts.append(rollout if rollout is not None else (rollouts[-1] + 1.0 if rollouts else 0.0))
    totals = Counter(rollouts)
    seen: dict[float, int] = {}
    positions = []
    for rollout in rollouts:
        position = seen.get(rollout, 0)
        seen[rollout] = position + 1
        positions.append(rollout + position / totals[rollout])
    return positions


def assign_panels(series: Mapping[str, Series]) -> list[tuple[Panel, list[Series]]]:
    """The panels that have something to show; values no panel names get one each, if they vary."""
    left = {name: item for name, item in series.items() if name not in TOTALS}
    assigned: list[tuple[Panel, list[Series]]] = []
    for panel in PANELS:
        items = [left.pop(name) for pattern in panel.names for name in _matching(pattern, left)]
        if items and (panel.core or not all(is_constant(item) for item in items)):
            assigned.append((panel, items))
    for name, item in left.items():
        if not is_constant(item):
            assigned.append((Panel(readable(name), (name,), "As recorded."), [item]))
    return assigned


def constant_values(series: Mapping[str, Series]) -> dict[str, float]:
    """Values without a panel because they never changed: a curve would waste space on them."""
    drawn = {item.name for _, items in assign_panels(series) for item in items}
    return {name: float(item.y[0]) for name, item in series.items() if name not in drawn and name not in TOTALS}


def is_constant(item: Series) -> bool:
    """Whether every value is the same finite number."""
    return bool(item.finite.all() and np.ptp(item.y) == 0.0)


def evaluation_series(evaluations: Sequence[StoredEvaluation]) -> list[Series]:
    """The mean of each score over training, one point an evaluation, "total" first; empty below two points."""
    points: dict[str, dict[int, float]] = {}
    for stored in evaluations:
        records = stored.evaluation.records
        for name in dict.fromkeys(name for record in records for name in record.scores):
            values = [record.scores[name] for record in records if name in record.scores]
            points.setdefault(name, {})[stored.evaluation.rollout] = float(np.mean(values))
    series = [
        Series(name, np.array(list(means), dtype=np.float64), np.array(list(means.values())))
        for name, means in sorted(points.items(), key=lambda item: item[0] != "total")
    ]
    return [item for item in series if item.x.size > 1]


def smoothed(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Centred moving mean of finite values; at the ends over what there is. [P] -> [P]."""
    half = window // 2
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(values.size)
    low, high = np.maximum(index - half, 0), np.minimum(index + half + 1, values.size)
    return (sums[high] - sums[low]) / (high - low)


def thinned(item: Series) -> Series:
    """At most ``_MAX_POINTS`` points: the lowest and the highest of each stretch, so that no spike is lost."""
    if item.x.size <= _MAX_POINTS:
        return item
    keep: set[int] = {0, item.x.size - 1}
    for stretch in np.array_split(np.arange(item.x.size), _MAX_POINTS // 2 - 1):
        keep.update((int(stretch[np.argmin(item.y[stretch])]), int(stretch[np.argmax(item.y[stretch])])))
    index = np.array(sorted(keep))
    return Series(item.name, item.x[index], item.y[index])


def readable(name: str) -> str:
    """A key as a heading: ``components.strict`` becomes "Strict", ``reward_std`` "Reward std"."""
    text = name.removeprefix("components.").replace("_", " ").replace(".", ": ").strip()
    return text[:1].upper() + text[1:]


def _matching(pattern: str, names: Mapping[str, object]) -> list[str]:
    if pattern.endswith("*"):
        return [name for name in names if name.startswith(pattern[:-1])]
    return [pattern] if pattern in names else []


def _flat_numbers(row: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in row.items():
        if isinstance(value, Mapping):
            yield from _flat_numbers(value, f"{prefix}{name}.")
            continue
        result = number(value)
        if result is not None:
            yield f"{prefix}{name}", result
