"""Lines of evaluations: written whole, sorted into runs, and complete or not."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.curves.rows import append, newest_complete, read_lines, runs_of
from tests.benchmarks.curves.made_up_runs import lines_of


def test_lines_come_back_in_order(tmp_path: Path):
    file = tmp_path / "results" / "x.jsonl"
    lines = lines_of("a", 0, [0.1, 0.2, 0.3])
    for line in lines:
        append(file, line)
    assert read_lines(file) == lines
    assert read_lines(tmp_path / "none.jsonl") == []


def test_figures_have_six_digits_and_are_finite(tmp_path: Path):
    file = tmp_path / "x.jsonl"
    append(file, {"score": 1 / 3, "points": [{"score": 2 / 3}]})
    assert read_lines(file) == [{"score": 0.333333, "points": [{"score": 0.666667}]}]
    with pytest.raises(ValueError, match="nan is no figure"):
        append(file, {"score": float("nan")})


def test_lines_of_several_workers_are_sorted_into_runs():
    first, second = lines_of("a", 0, [0.1, 0.2]), lines_of("a", 1, [0.3, 0.4])
    mixed = [first[0], second[0], second[1], first[1]]
    assert [(run.seed, run.column("heldout")) for run in runs_of(mixed)] == [(0, [0.1, 0.2]), (1, [0.3, 0.4])]


def test_stopped_run_is_passed_over_and_a_later_one_counts():
    stopped = lines_of("a", 0, [0.1, 0.2], complete=False, started="t0")
    again = lines_of("a", 0, [0.1, 0.5], started="t1")
    other = lines_of("b", 0, [0.1, 0.2], complete=False)
    found = newest_complete(runs_of([*stopped, *again, *other]))
    assert {name: sorted(runs) for name, runs in found.items()} == {"a": [0]}
    assert found["a"][0].column("heldout") == [0.1, 0.5]
    newer = lines_of("a", 0, [0.1, 0.7], started="t2", settings="other")
    assert newest_complete(runs_of([*again, *newer]))["a"][0].settings == "other"
