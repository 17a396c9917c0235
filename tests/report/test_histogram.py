"""Bars of a histogram: they hold all values, once, in bins of round width."""

from __future__ import annotations

import numpy as np
import pytest

from difalign.report.histogram import bin_edges, histogram


@pytest.mark.parametrize("seed", range(5))
def test_every_value_falls_into_one_bin_of_round_width(seed: int):
    rng = np.random.default_rng(seed)
    values = rng.normal(rng.uniform(-5, 5), 10.0 ** rng.uniform(-3, 3), size=200)
    edges = bin_edges(values)
    assert np.histogram(values, edges)[0].sum() == 200
    assert 5 <= edges.size - 1 <= 41
    width = edges[1] - edges[0]
    assert np.allclose(np.diff(edges), width)
    assert f"{width:.6e}"[0] in "125"


def test_equal_values_have_one_bar():
    chart = histogram("r", {"a": [0.5, 0.5, np.nan]})
    assert chart is not None
    ((bar,),) = (series.bars for series in chart.series)
    assert (bar.left, bar.width, bar.height) == (0.0, 100.0, 100.0)
    assert chart.series[0].mean == pytest.approx(50.0)
    assert histogram("r", {"a": [np.nan]}) is None


def test_two_series_share_bins_and_heights():
    chart = histogram("r", {"base": [0.0, 0.0, 1.0, 4.0], "tuned": [4.0, 4.0]})
    assert chart is not None
    base, tuned = chart.series
    assert sum(bar.height for bar in base.bars) == pytest.approx(sum(bar.height for bar in tuned.bars))
    assert {bar.left for bar in tuned.bars} <= {bar.left for bar in base.bars}
    assert base.mean == pytest.approx(1.25 / 4 * tuned.mean)
    assert chart.y_ticks[-1].label.endswith(" %")
