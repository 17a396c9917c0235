"""Bands of seeds, and where two of them do not touch."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.curves.bands import Band, band, last_common, stretches_above
from benchmarks.curves.rows import Run, runs_of
from tests.benchmarks.curves.made_up_runs import lines_of


def three_seeds() -> list[Run]:
    scores = ([0.0, 0.2, 0.4], [0.0, 0.4, 0.6], [0.0, 0.3, 0.8])
    return runs_of([line for seed, heldout in enumerate(scores) for line in lines_of("a", seed, heldout)])


def test_band_is_mean_lowest_and_highest_seed_on_straight_lines():
    found = band(three_seeds(), axis="seconds", figure="heldout", x=np.array([0.0, 5.0, 10.0, 20.0]))
    assert found.mean == pytest.approx([0.0, 0.15, 0.3, 0.6])
    assert found.low == pytest.approx([0.0, 0.1, 0.2, 0.4])
    assert found.high == pytest.approx([0.0, 0.2, 0.4, 0.8])
    assert found.seeds == 3


def test_axis_is_the_one_asked_for():
    found = band(three_seeds(), axis="update", figure="heldout", x=np.array([4.0]))
    assert found.mean == pytest.approx([0.3])
    assert last_common(three_seeds(), "forwards") == 2000


def test_runs_are_never_extended():
    runs = [*three_seeds(), *runs_of(lines_of("a", 3, [0.0, 1.0]))]
    assert last_common(runs, "seconds") == 10
    with pytest.raises(ValueError, match=r"ends at 10\.0 seconds, before 20\.0"):
        band(runs, axis="seconds", figure="heldout", x=np.array([20.0]))
    with pytest.raises(ValueError, match="no run"):
        band([], axis="seconds", figure="heldout", x=np.array([0.0]))


def made(low: list[float], high: list[float]) -> Band:
    return Band(np.arange(len(low), dtype=float), np.array(low), np.array(low), np.array(high), 3)


def test_stretches_are_where_the_lowest_seed_is_above_the_highest():
    lower = made([0.0] * 6, [0.5, 0.5, 0.5, 0.5, 0.5, 0.5])
    upper = made([0.5, 0.6, 0.6, 0.4, 0.7, 0.5], [1.0] * 6)
    assert stretches_above(upper, lower) == [(1.0, 2.0), (4.0, 4.0)]
    assert stretches_above(lower, upper) == []


def test_stretch_may_reach_both_ends():
    assert stretches_above(made([0.6, 0.6], [0.7, 0.7]), made([0.0, 0.0], [0.1, 0.1])) == [(0.0, 1.0)]


def test_bands_of_different_places_are_refused():
    with pytest.raises(ValueError, match="different places"):
        stretches_above(made([0.1], [0.2]), made([0.1, 0.1], [0.2, 0.2]))
