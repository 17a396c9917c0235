"""Charts as small SVG paths in percent of their box; the labels are text around them.

The box is stretched to whatever width the page has, strokes keep their width, and the labels keep their size,
so a chart reads as well on a phone as on a wide screen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from difalign.report.series import Panel, Series, readable, smoothed, thinned
from difalign.report.words import compact, finite, finite_pair

_SMOOTH_FROM = 24  # points from which a curve also gets a moving mean
_LOG_SPAN = 1e3  # ratio of the largest to the smallest value from which the axis is logarithmic
_COLOURS = 6  # the style sheet knows this many


@dataclass(frozen=True, slots=True)
class Tick:
    """A labelled position on an axis."""

    percent: float
    label: str


@dataclass(frozen=True, slots=True)
class Axis:
    """Maps values to percent of the box, with its ticks."""

    low: float
    high: float
    logarithmic: bool
    ticks: tuple[Tick, ...]


@dataclass(frozen=True, slots=True)
class Curve:
    """One line of a chart."""

    name: str
    colour: int  # 1 to 6, a class of the style sheet
    path: str  # SVG path in percent, y downwards
    mean_path: str  # the moving mean, or ""
    points: tuple[tuple[float, float], ...]  # for marks and the tooltip: percent across, percent down
    labels: tuple[str, ...]  # one a point
    last: str


@dataclass(frozen=True, slots=True)
class Chart:
    """Everything the page needs to draw one panel."""

    title: str
    note: str
    curves: tuple[Curve, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    positions: tuple[str, ...]  # what the tooltip calls the points of the first curve
    marks: bool  # draw each point
    logarithmic: bool
    not_finite: str  # a sentence about values that cannot be drawn, or ""
    over: str = "rollouts"  # what runs across


@dataclass(frozen=True, slots=True)
class IntervalMark:
    """A gain with its interval on a common axis, in percent across."""

    low: float
    high: float
    gain: float


def line_chart(panel: Panel, series: Sequence[Series], *, marks: bool = False) -> Chart:
    """The chart of the finite values of some series over rollouts."""
    x = np.concatenate([item.x[item.finite] for item in series])
    x_axis = whole_number_axis(float(x.min()), float(x.max())) if x.size else whole_number_axis(0.0, 0.0)
    return chart_over(panel, series, x_axis, marks=marks, position=lambda x: f"rollout {compact(math.floor(x))}")


def chart_over(
    panel: Panel,
    series: Sequence[Series],
    x_axis: Axis,
    *,
    position: Callable[[float], str],
    marks: bool = False,
    over: str = "rollouts",
) -> Chart:
    """The chart of the finite values of some series over any axis.

    Args:
        panel: its title and note.
        series: x in units of the axis.
        x_axis: what runs across.
        position: what the tooltip calls a place on it.
        marks: draw each point.
        over: what runs across, in words.
    """
    drawable = [Series(item.name, item.x[item.finite], item.y[item.finite]) for item in series]
    drawable = [item for item in drawable if item.x.size]
    not_finite = _not_finite_sentence(series, position)
    if not drawable:
        return Chart(panel.title, panel.note, (), (), (), (), marks, False, not_finite, over)
    y_axis = value_axis(np.concatenate([item.y for item in drawable]))
    names = [readable(item.name) for item in drawable] if len(series) > 1 else ["last"]
    curves = tuple(
        _curve(item, name, colour, x_axis, y_axis)
        for colour, (item, name) in enumerate(zip(drawable, names, strict=True))
    )
    return Chart(
        title=panel.title,
        note=panel.note,
        curves=curves,
        x_ticks=x_axis.ticks,
        y_ticks=y_axis.ticks,
        positions=tuple(position(x) for x in thinned(drawable[0]).x.tolist()),
        # A single point has no line: it is drawn as a mark.
        marks=marks or any(item.x.size == 1 for item in drawable),
        logarithmic=y_axis.logarithmic,
        not_finite=not_finite,
        over=over,
    )


def value_axis(values: NDArray[np.float64]) -> Axis:
    """A vertical axis around finite values: from 0 where that is near, logarithmic where they span decades."""
    low, high = float(values.min()), float(values.max())
    if low > 0 and high / low >= _LOG_SPAN:
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        step = max(1, math.ceil((last - first) / 4))
        decades = range(first, last + 1, step)
        ticks = tuple(Tick(100.0 * (decade - first) / (last - first), f"1e{decade}") for decade in decades)
        return Axis(10.0**first, 10.0**last, True, ticks)
    if 0 <= low < 0.5 * high:
        low = 0.0
    if high - low <= 1e-12 * max(abs(low), abs(high)):
        padding = 0.05 * abs(low) or 1.0
        low, high = (low - padding, high + padding) if low else (0.0, padding)
    step = nice_step((high - low) / 4)
    low, high = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
    largest = max(abs(low), abs(high))
    levels = [low + index * step for index in range(round((high - low) / step) + 1)]
    ticks = tuple(Tick(100.0 * (level - low) / (high - low), tick_label(level, step, largest)) for level in levels)
    return Axis(low, high, False, ticks)


def whole_number_axis(low: float, high: float) -> Axis:
    """A horizontal axis from the first to the last rollout, ticks at whole numbers."""
    if high == low:
        return Axis(low - 0.5, high + 0.5, False, (Tick(50.0, compact(low)),))
    step = max(1.0, nice_step((high - low) / 4))
    first = math.ceil(low / step) * step
    levels = [first + index * step for index in range(int((high - first) / step + 1e-9) + 1)]
    return Axis(low, high, False, tuple(Tick(100.0 * (level - low) / (high - low), compact(level)) for level in levels))


def nice_step(rough: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is not below ``rough``."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))


def tick_label(level: float, step: float, largest: float) -> str:
    """A level with as many digits as its step needs; powers of ten where the axis' ``largest`` is tiny or huge."""
    if abs(level) < 1e-9 * step:
        return "0"
    if 1e-3 <= largest < 1e5:
        decimals = max(0, -math.floor(math.log10(step) + 1e-9))
        return f"{level:.{decimals}f}".replace("-", "−")
    digits = max(0, math.floor(math.log10(abs(level)) + 1e-9) - math.floor(math.log10(step) + 1e-9))
    mantissa, exponent = f"{level:.{digits}e}".split("e")
    return f"{mantissa}e{int(exponent)}".replace("-", "−")


def percent(value: float, axis: Axis) -> float:
    """Where a value lies on an axis, in percent."""
    if axis.logarithmic:
        return 100.0 * math.log(value / axis.low) / math.log(axis.high / axis.low)
    return 100.0 * (value - axis.low) / (axis.high - axis.low)


def interval_axis(rows: Sequence[tuple[object, object]]) -> Axis:
    """The common axis of gains and their intervals; 0 is always on it."""
    values = [0.0]
    for gain, bounds in rows:
        values += [value for value in (finite(gain), *(finite_pair(bounds) or ())) if value is not None]
    low, high = min(values), max(values)
    padding = 0.06 * (high - low) or 1.0
    return Axis(low - padding, high + padding, False, ())


def interval_mark(gain: object, bounds: object, axis: Axis) -> IntervalMark | None:
    """Where a gain and its interval lie; None for a gain that is not a finite number."""
    middle = finite(gain)
    if middle is None:
        return None
    low, high = finite_pair(bounds) or (middle, middle)
    return IntervalMark(percent(low, axis), percent(high, axis), percent(middle, axis))


def _curve(item: Series, name: str, position: int, x_axis: Axis, y_axis: Axis) -> Curve:
    shown = thinned(item)
    mean_path = ""
    if item.x.size >= _SMOOTH_FROM:
        window = 2 * (item.x.size // 16) + 1
        mean_path = _path(_places(thinned(Series(item.name, item.x, smoothed(item.y, window))), x_axis, y_axis))
    points = _places(shown, x_axis, y_axis)
    return Curve(
        name=name,
        colour=position % _COLOURS + 1,
        path=_path(points),
        mean_path=mean_path,
        points=points,
        labels=tuple(compact(value) for value in shown.y.tolist()),
        last=compact(float(item.y[-1])),
    )


def _places(item: Series, x_axis: Axis, y_axis: Axis) -> tuple[tuple[float, float], ...]:
    return tuple(
        (round(percent(x, x_axis), 2), round(100.0 - percent(y, y_axis), 2))
        for x, y in zip(item.x.tolist(), item.y.tolist(), strict=True)
    )


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.2f} {y:.2f}" for x, y in points)


def _not_finite_sentence(series: Sequence[Series], position: Callable[[float], str]) -> str:
    """Which values are not finite numbers, in words; empty if none."""
    missing = list(dict.fromkeys(position(x) for item in series for x in sorted(item.x[~item.finite].tolist())))
    if not missing:
        return ""
    total = sum(int((~item.finite).sum()) for item in series)
    kind = missing[0].split()[0]
    shown = ", ".join(place.removeprefix(f"{kind} ") for place in missing[:6]) + (", …" if len(missing) > 6 else "")
    values = "value is" if total == 1 else "values are"
    return f"{total} {values} not finite (overflow or division by zero) and left out: {kind} {shown}."
