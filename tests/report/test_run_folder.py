from __future__ import annotations

from pathlib import Path

import pytest

from difalign.report.log import RunLog
from difalign.report.records import Evaluation
from difalign.report.run_folder import merge_rows, read_run


def test_rows_of_a_resumed_run_replace_the_ones_they_repeat() -> None:
    rows = [{"rollout": 0, "update": 0, "kl": 1}, {"rollout": 1, "update": 0, "kl": 2, "x": 7}]
    merged = merge_rows([*rows, {"rollout": 1, "update": 0, "kl": 3}, {"rollout": 0, "update": 1, "kl": 4}])
    assert [row["kl"] for row in merged] == [1, 4, 3]
    assert merged[2]["x"] == 7


def test_a_broken_line_is_left_out_and_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"rollout": 0}\n\n[1]\n{"rollout": 1}\n{"rol')
    run = read_run(tmp_path)
    assert [row["rollout"] for row in run.metrics] == [0, 1]
    assert run.problems == ("Left out of metrics.jsonl: lines 3, 5, which could not be read.",)


def test_unreadable_summary_and_evaluation_are_problems_not_crashes(tmp_path: Path) -> None:
    (tmp_path / "evaluations").mkdir()
    (tmp_path / "evaluations" / "000000.json").write_text("{")
    (tmp_path / "summary.json").write_text("[]")
    run = read_run(tmp_path)
    assert run.summary is None
    assert len(run.problems) == 2


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a folder"):
        read_run(tmp_path / "missing")
    with pytest.raises(ValueError, match="nothing that a run writes"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("labels", "base", "latest"),
    [
        (["base"], "base", None),
        (["start"], None, "start"),
        (["start", "end"], "start", "end"),
        (["base", "tuned", "ema"], "base", "tuned"),
        (["base", "during", "ema"], "base", "ema"),
    ],
)
def test_which_evaluations_are_compared(
    tmp_path: Path, labels: list[str], base: str | None, latest: str | None
) -> None:
    for rollout, label in enumerate(labels):
        RunLog(tmp_path).write_evaluation(Evaluation(rollout, label, ()))
    run = read_run(tmp_path)
    assert (run.base and run.base.evaluation.label) == base
    assert (run.latest and run.latest.evaluation.label) == latest
