"""Histograms of scores, as bars in percent of their box."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from difalign.report.chart import Tick, nice_step, percent, tick_label, value_axis

_FEWEST_BINS, _MOST_BINS = 12, 40  # before the width is made round, which leaves at least 5


@dataclass(frozen=True, slots=True)
class Bar:
    """One bin, in percent of the box, and what its tooltip says."""

    left: float
    width: float
    height: float
    text: str


@dataclass(frozen=True, slots=True)
class Bars:
    """One named series of bars."""

    name: str
    colour: int  # 1 to 6, a class of the style sheet
    bars: tuple[Bar, ...]
    mean: float  # percent across


@dataclass(frozen=True, slots=True)
class Histogram:
    """Everything that the page needs to draw one; the height is the share of pictures."""

    title: str
    series: tuple[Bars, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]


def histogram(title: str, scores: Mapping[str, ArrayLike]) -> Histogram | None:
    """The histogram of one or several series of scores over common bins; None where there is no finite score."""
    values = {name: _finite(series) for name, series in scores.items()}
    values = {name: series for name, series in values.items() if series.size}
    if not values:
        return None
    edges = bin_edges(np.concatenate(list(values.values())))
    shares = {name: np.histogram(series, edges)[0] / series.size for name, series in values.items()}
    height = value_axis(np.concatenate([[0.0], *(100.0 * share for share in shares.values())]))
    low, step, span = float(edges[0]), float(edges[1] - edges[0]), float(edges[-1] - edges[0])
    largest = float(np.abs(edges).max())
    series = tuple(
        Bars(
            name,
            colour % 6 + 1,
            tuple(
                Bar(
                    100.0 * (float(left) - low) / span,
                    100.0 * step / span,
                    percent(100.0 * float(share), height),
                    f"{name}: {share:.0%} in {tick_label(float(left), step, largest)} to "
                    f"{tick_label(float(left) + step, step, largest)}",
                )
                for left, share in zip(edges[:-1], shares[name], strict=True)
                if share > 0
            ),
            100.0 * (float(values[name].mean()) - low) / span,
        )
        for colour, name in enumerate(values)
    )
    every = max(1, math.ceil((edges.size - 1) / 5))
    ticks = tuple(
        Tick(100.0 * (float(edge) - low) / span, tick_label(float(edge), step, largest)) for edge in edges[::every]
    )
    heights = tuple(Tick(tick.percent, f"{tick.label} %") for tick in height.ticks)
    return Histogram(title, series, ticks, heights)


def bin_edges(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Edges of equal bins of a round width around all values, by the rule of Freedman and Diaconis (1981).

    The width is 2 IQR / cube root of N, taken up to the next of 1, 2, 5 times a power of ten, and so that there are
    neither few bins nor many.
    """
    low, high = float(values.min()), float(values.max())
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        padding = 0.5 * max(abs(low), 1e-6) if low else 0.5
        return np.array([low - padding, low + padding])
    quarter, three_quarters = np.quantile(values, [0.25, 0.75])
    rough = 2.0 * float(three_quarters - quarter) / values.size ** (1 / 3)
    step = nice_step(min(max(rough, (high - low) / _MOST_BINS), (high - low) / _FEWEST_BINS))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    # Multiplied out, not added up: an edge such as 0.3 is the float that a score of 0.3 is.
    return np.arange(first, last + 1, dtype=np.float64) * step


def _finite(series: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(series, dtype=np.float64)
    return values[np.isfinite(values)]
