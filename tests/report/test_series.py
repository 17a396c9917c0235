from __future__ import annotations

from pathlib import Path

import numpy as np

from difalign.report.log import RunLog
from difalign.report.records import Evaluation, SampleRecord
from difalign.report.run_folder import read_run
from difalign.report.series import (
    Series,
    assign_panels,
    collect_series,
    constant_values,
    evaluation_series,
    rollout_positions,
    smoothed,
    thinned,
)

ROWS = [
    {"rollout": 0, "update": 0, "reward": 0.1, "components": {"strict": 0.2}, "odd": 1.0, "same": 3, "text": "x"},
    {"rollout": 0, "update": 1, "reward": 0.1, "kl": "NaN", "odd": 2.0, "same": 3},
    {"rollout": 1, "update": 2, "reward": 0.3, "components": {"strict": 0.4}, "odd": 3.0, "same": 3},
]


def test_updates_of_one_rollout_stand_side_by_side() -> None:
    assert rollout_positions(ROWS) == [0.0, 0.5, 1.0]
    assert rollout_positions([{"reward": 1}, {"reward": 2}]) == [0.0, 1.0]


def test_every_number_becomes_a_series_and_missing_keys_are_skipped() -> None:
    series = collect_series(ROWS)
    assert set(series) == {"reward", "components.strict", "kl", "odd", "same"}
    assert series["components.strict"].x.tolist() == [0.0, 1.0]
    assert np.isnan(series["kl"].y).all()


def test_unknown_values_are_drawn_if_they_vary_and_tabled_if_not() -> None:
    series = collect_series(ROWS)
    drawn = {panel.title: [item.name for item in items] for panel, items in assign_panels(series)}
    assert drawn["Reward in training"] == ["reward", "components.strict"]
    assert drawn["Odd"] == ["odd"]
    assert constant_values(series) == {"same": 3.0}


def test_a_core_value_is_drawn_even_if_constant_and_a_constant_learning_rate_is_tabled() -> None:
    series = collect_series([{"rollout": i, "clip_fraction": 0.0, "learning_rate": 1e-3} for i in range(3)])
    assert [panel.title for panel, _ in assign_panels(series)] == ["Clip fraction"]
    assert constant_values(series) == {"learning_rate": 1e-3}


def test_smoothing_keeps_lines_straight_and_averages_noise() -> None:
    line = np.linspace(0, 1, 50)
    assert np.allclose(smoothed(line, 7)[3:-3], line[3:-3])
    assert smoothed(np.array([1.0, 2.0, 6.0]), 3).tolist() == [1.5, 3.0, 4.0]
    assert np.allclose(smoothed(line, 1), line)


def test_thinning_bounds_the_points_and_keeps_the_spikes() -> None:
    y = np.random.default_rng(0).random(20_000)
    y[[777, 15_000]] = 9.0, -9.0
    thin = thinned(Series("kl", np.arange(20_000.0), y))
    assert thin.x.size <= 600
    assert (thin.y.max(), thin.y.min()) == (9.0, -9.0)
    assert (np.diff(thin.x) > 0).all()
    assert (thin.x[0], thin.x[-1]) == (0, 19_999)


def test_evaluations_become_the_mean_of_each_score(tmp_path: Path) -> None:
    for rollout in (0, 10):
        records = tuple(
            SampleRecord("p", "k", seed, {"strict": 0.0, "total": (rollout + seed) / 10}, 0) for seed in (0, 2)
        )
        RunLog(tmp_path).write_evaluation(Evaluation(rollout, "base" if rollout == 0 else "tuned", records))
    stored = read_run(tmp_path).evaluations
    total, strict = evaluation_series(stored)
    assert (total.name, total.x.tolist()) == ("total", [0.0, 10.0])
    assert np.allclose(total.y, [0.1, 1.1])
    assert strict.y.tolist() == [0.0, 0.0]
    assert evaluation_series(stored[:1]) == []
