from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from difalign.report.alarms import Alarm
from difalign.report.comparison import write_before_after
from difalign.report.log import RunLog, find_mismatch, plain, write_text_atomically
from difalign.report.page import write_report
from difalign.report.records import Evaluation, SampleRecord
from difalign.report.run_folder import read_run
from tests.folders import file_contents
from tests.report.fake_diagnostics import leaf_pictures, seen_at
from tests.report.fake_run import FakeRun

ALARM = Alarm("kl_drift", 1, 2, seen="KL é 0.2", remedy="less of it", value=0.2, limit=0.1)
RECORD = SampleRecord("a red circle", "single", 0, {"total": 0.5}, 0)


def test_scalars_of_numpy_and_torch_become_numbers() -> None:
    row = {"a": np.float32(0.5), "b": torch.tensor(2), "c": np.float64(1.5), "d": (1, [True, None]), "e": Path("x/y")}
    assert plain(row) == {"a": 0.5, "b": 2, "c": 1.5, "d": [1, [True, None]], "e": "x/y"}


def test_numbers_that_are_not_finite_keep_the_file_valid_json(tmp_path: Path) -> None:
    RunLog(tmp_path).append_metrics({"loss": float("nan"), "kl": float("inf"), "x": torch.tensor(float("-inf"))})
    text = (tmp_path / "metrics.jsonl").read_text()

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    assert json.loads(text, parse_constant=refuse) == {"loss": "NaN", "kl": "Infinity", "x": "-Infinity"}


@pytest.mark.parametrize("value", [object(), np.zeros(3), torch.zeros(2), b"bytes"])
def test_what_has_no_json_form_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="cannot be written as JSON"):
        plain({"x": value})


def test_every_row_is_on_disk_when_the_call_returns(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "new" / "folder")
    for rollout in range(3):
        log.append_metrics({"rollout": rollout})
        lines = (tmp_path / "new/folder/metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["rollout"] for line in lines] == list(range(rollout + 1))


def test_a_line_cut_off_by_a_crash_does_not_swallow_the_next(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"rollout": 0}\n{"roll')
    RunLog(tmp_path).append_metrics({"rollout": 1})
    assert (tmp_path / "metrics.jsonl").read_text().splitlines() == ['{"rollout": 0}', '{"roll', '{"rollout": 1}']


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "summary.json"
    write_text_atomically(target, "old")

    def fail(self: Path, target: Path) -> Path:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_text_atomically(target, "new")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_written_files_can_be_read_by_others(tmp_path: Path) -> None:
    path = RunLog(tmp_path).write_summary({"gain": 0.1})
    assert path.stat().st_mode & 0o444 == 0o444


def test_evaluation_is_numbered_by_its_rollout_and_has_its_grid(tmp_path: Path) -> None:
    path = RunLog(tmp_path).write_evaluation(Evaluation(20, "tuned", (RECORD,)), images=np.zeros((1, 3, 8, 8)))
    assert path == tmp_path / "evaluations" / "000020.json"
    assert path.with_suffix(".png").is_file()
    assert json.loads(path.read_text())["records"][0] == {
        "prompt": "a red circle",
        "kind": "single",
        "seed": 0,
        "scores": {"total": 0.5},
        "prompt_index": 0,
    }


def test_a_second_label_at_the_same_rollout_overwrites_nothing(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    first = log.write_evaluation(Evaluation(5, "tuned", (RECORD,)))
    second = log.write_evaluation(Evaluation(5, "ema/0.9", (RECORD,)))
    again = log.write_evaluation(Evaluation(5, "tuned", (RECORD,)))
    assert first == again
    assert second.name == "000005-ema_0_9.json"
    assert json.loads(first.read_text())["label"] == "tuned"


def test_clearing_removes_what_a_run_wrote_and_nothing_else(fake_run: FakeRun) -> None:
    folder = fake_run(rollouts=1)
    write_report(folder)
    write_before_after(folder)
    RunLog(folder).write_diagnostics(seen_at(0), leaf_pictures(seen_at(0)))
    mine = [folder / "notes.txt", folder / "evaluations" / "mine.png", folder / "diagnostics" / "mine.json"]
    for path in mine:
        path.write_text("keep")
    RunLog(folder).clear()
    assert sorted(path for path in folder.rglob("*") if path.is_file()) == sorted(mine)


def rows(log: RunLog, *rollouts: int) -> None:
    for rollout in rollouts:
        log.append_metrics({"rollout": rollout})


def test_log_returns_to_a_mark(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    rows(log, 0, 1)
    log.append_alarm(ALARM)
    log.write_evaluation(Evaluation(0, "base", (RECORD,)), images=np.zeros((1, 3, 8, 8)))
    log.write_diagnostics(seen_at(1), leaf_pictures(seen_at(1)))
    mark = log.mark()
    files = file_contents(tmp_path)
    rows(log, 2, 3)
    log.write_diagnostics(seen_at(2), leaf_pictures(seen_at(2)))
    log.append_alarm(ALARM)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"rollout"')  # a crash
    log.write_evaluation(Evaluation(2, "training", (RECORD,)), images=np.zeros((1, 3, 8, 8)))
    (tmp_path / "evaluations" / "000003.png").write_bytes(b"its scores were never written")
    (tmp_path / "evaluations" / "mine.json").write_text("{}")
    log.write_summary({"gain": 1.0})
    assert find_mismatch(tmp_path, mark) is None
    log.return_to(mark)
    left = file_contents(tmp_path)
    assert left == {**files, "evaluations/mine.json": b"{}"}
    rows(log, 2)
    assert [json.loads(line)["rollout"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [0, 1, 2]


def test_mark_of_an_empty_folder(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    mark = log.mark()
    assert (mark.metrics.size, mark.alarms.size, mark.evaluations) == (0, 0, ())
    rows(log, 0)
    log.append_alarm(ALARM)
    log.return_to(mark)
    assert not list(tmp_path.iterdir())
    assert find_mismatch(tmp_path, mark) is None


def test_folder_that_cannot_return_says_why(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    rows(log, 0, 1)
    mark = log.mark()
    path = tmp_path / "metrics.jsonl"
    text = path.read_text()
    path.write_text(text.replace("1", "2"))
    assert "other rows" in (find_mismatch(tmp_path, mark) or "")
    path.write_text(text[:-1])
    assert "fewer than" in (find_mismatch(tmp_path, mark) or "")
    path.unlink()
    assert "has 0 bytes" in (find_mismatch(tmp_path, mark) or "")


def test_alarms_are_read_as_they_were_given(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    other = Alarm("export_differs", 4, 8, seen="it cannot be read", remedy="use a checkpoint")
    log.append_alarm(ALARM)
    with (tmp_path / "alarms.jsonl").open("a") as file:
        file.write('{"name": "kl_drift"}\n')
    log.append_alarm(other)
    run = read_run(tmp_path)
    assert run.alarms == (ALARM, other)
    assert run.problems == ("Left out of alarms.jsonl: line 2, which could not be read.",)
    assert ALARM.line == "kl_drift at rollout 1, update 2: KL é 0.2; less of it"


def test_alarms_of_another_run_are_a_mismatch(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    log.append_alarm(ALARM)
    mark = log.mark()
    (tmp_path / "alarms.jsonl").unlink()
    assert "alarms.jsonl of the run has 0 bytes" in (find_mismatch(tmp_path, mark) or "")
