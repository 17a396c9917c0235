"""From runs to bands: what several seeds scored at the same place of an axis, and where two bands do not touch.

A run is the straight lines between its evaluations. A band goes from the lowest to the highest seed: with so few of
them it says what was seen and claims nothing about a distribution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.curves.rows import Run

Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Band:
    """The seeds of one method along an axis."""

    x: Values  # [P]
    mean: Values  # [P] over seeds
    low: Values  # [P] the lowest seed
    high: Values  # [P] the highest seed
    seeds: int


def last_common(runs: Sequence[Run], axis: str) -> float:
    """How far along ``axis`` all of the runs have come."""
    return min(run.column(axis)[-1] for run in runs)


def band(runs: Sequence[Run], *, axis: str, figure: str, x: Values) -> Band:
    """What the seeds of a method scored at the places ``x`` of an axis.

    Raises:
        ValueError: if there is no run, or one does not reach so far.
    """
    if not runs:
        raise ValueError("no run to make a band of; run the method first")
    if x.max() > last_common(runs, axis) * (1 + 1e-9):
        raise ValueError(f"a run ends at {last_common(runs, axis)} {axis}, before {x.max()}; ask for less")
    values = np.stack([np.interp(x, run.column(axis), run.column(figure)) for run in runs])
    return Band(x, values.mean(0), values.min(0), values.max(0), len(runs))


def stretches_above(upper: Band, lower: Band) -> list[tuple[float, float]]:
    """Where every seed of one band lies above every seed of the other, as closed stretches of the axis.

    Raises:
        ValueError: if the bands are not of the same places.
    """
    if not np.array_equal(upper.x, lower.x):
        raise ValueError("the bands are of different places of the axis; make both with the same x")
    apart = upper.low > lower.high
    edges = np.flatnonzero(np.diff(np.concatenate(([False], apart, [False])).astype(np.int8)))
    return [(float(upper.x[a]), float(upper.x[b - 1])) for a, b in zip(edges[::2], edges[1::2], strict=True)]
