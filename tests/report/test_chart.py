from __future__ import annotations

import numpy as np
import pytest

from difalign.report.chart import (
    interval_axis,
    interval_mark,
    line_chart,
    nice_step,
    percent,
    tick_label,
    value_axis,
    whole_number_axis,
)
from difalign.report.series import Panel, Series

PANEL = Panel("KL", ("kl",), "")


def series(values: list[float], name: str = "kl") -> Series:
    return Series(name, np.arange(len(values), dtype=np.float64), np.array(values))


@pytest.mark.parametrize(("rough", "step"), [(0.0013, 0.002), (1.0, 1.0), (2.1, 5.0), (5.1, 10.0), (70, 100.0)])
def test_nice_steps(rough: float, step: float) -> None:
    assert nice_step(rough) == pytest.approx(step)


@pytest.mark.parametrize(
    "values",
    [[0.0], [1.0], [-3.0], [0.2, 0.9], [0.99995, 1.0001], [-2e-4, 3e-4], [1e-6, 5.0], [0.0, 1e9], [3e-5, 3.1e-5]],
)
def test_the_axis_holds_every_value_and_few_distinct_labels(values: list[float]) -> None:
    axis = value_axis(np.array(values))
    for value in values:
        assert -1e-6 <= percent(value, axis) <= 100 + 1e-6
    labels = [tick.label for tick in axis.ticks]
    assert 2 <= len(labels) <= 8
    assert len(set(labels)) == len(labels)
    assert axis.ticks[0].percent == pytest.approx(0.0)


def test_values_over_many_decades_get_a_logarithmic_axis() -> None:
    axis = value_axis(np.array([1e-6, 1e-2]))
    assert axis.logarithmic
    assert percent(1e-4, axis) == pytest.approx(50.0)
    assert not value_axis(np.array([0.0, 1e-6, 1.0])).logarithmic


@pytest.mark.parametrize(
    ("level", "step", "largest", "label"),
    [
        (0.0005, 0.0005, 0.002, "0.0005"),
        (0.0, 0.1, 1.0, "0"),
        (1.00005, 5e-5, 1.0001, "1.00005"),
        (-2e-4, 1e-4, 4e-4, "−2e−4"),
        (2e6, 1e6, 3e6, "2e6"),
    ],
)
def test_tick_labels(level: float, step: float, largest: float, label: str) -> None:
    assert tick_label(level, step, largest) == label


def test_rollouts_are_marked_at_whole_numbers() -> None:
    assert [tick.label for tick in whole_number_axis(0, 59.5).ticks] == ["0", "20", "40"]
    assert [tick.label for tick in whole_number_axis(0, 2.5).ticks] == ["0", "1", "2"]
    assert [tick.label for tick in whole_number_axis(4, 4).ticks] == ["4"]


def test_higher_values_lie_higher_up() -> None:
    (curve,) = line_chart(PANEL, [series([0.0, 1.0])]).curves
    assert curve.points == ((0.0, 100.0), (100.0, 0.0))
    assert curve.path == "M0.00 100.00L100.00 0.00"
    assert (curve.last, curve.labels) == ("1", ("0", "1"))


def test_values_that_are_not_finite_are_counted_in_words_and_not_drawn() -> None:
    chart = line_chart(PANEL, [series([0.0, float("nan"), float("inf"), 1.0])])
    assert len(chart.curves[0].points) == 2
    assert chart.not_finite.startswith("2 values are not finite")
    assert chart.not_finite.endswith("rollout 1, 2.")
    assert "nan" not in repr(chart)
    nothing = line_chart(PANEL, [series([float("nan")])])
    assert nothing.curves == ()
    assert nothing.not_finite.startswith("1 value is not finite")


def test_one_point_is_a_mark_and_many_get_a_moving_mean() -> None:
    assert line_chart(PANEL, [series([0.5])]).marks
    assert line_chart(PANEL, [series([0.5] * 23)]).curves[0].mean_path == ""
    assert line_chart(PANEL, [series([0.5] * 24)]).curves[0].mean_path != ""


def test_curves_of_one_chart_have_names_and_colours_of_their_own() -> None:
    curves = line_chart(PANEL, [series([0, 1], "reward"), series([1, 0], "components.strict")]).curves
    assert [(curve.name, curve.colour) for curve in curves] == [("Reward", 1), ("Strict", 2)]


def test_intervals_share_an_axis_that_holds_zero() -> None:
    axis = interval_axis([(0.2, [0.1, 0.3]), (None, None), (0.5, None)])
    assert axis.low < 0
    assert axis.high > 0.5
    mark = interval_mark(0.2, [0.1, 0.3], axis)
    assert mark is not None
    assert mark.low < mark.gain < mark.high
    assert interval_mark(float("nan"), None, axis) is None
    assert interval_axis([]).low < 0 < interval_axis([]).high
