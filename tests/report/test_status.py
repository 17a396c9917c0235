"""Where a run stands, from folders of runs that go on, ended, broke off in the middle of a line, or never were."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from difalign.report.alarms import Alarm
from difalign.report.log import METRICS_FILE, RunLog
from difalign.report.records import Evaluation, SampleRecord
from difalign.report.status import run_status

NOW = 2_000_000_000.0


def going(folder: Path, *, rollouts: int, written: float = NOW - 5, config: str | None = None) -> Path:
    """A run of 100 planned rollouts, two updates each, that slowed from 1 to 3 seconds a rollout after the fiftieth."""
    log = RunLog(folder)
    text = "name: mine\ntraining:\n  rollouts: 100\n  max_seconds: null\n" if config is None else config
    log.write_config(text)
    for rollout in range(rollouts):
        seconds = min(rollout + 1, 50) + 3.0 * max(rollout + 1 - 50, 0)
        for update in range(2):
            totals = {"denoiser_forwards": 60 * (rollout + 1), "reward_calls": 12 * (rollout + 1)}
            place = {"rollout": rollout, "update": 2 * rollout + update}
            log.append_metrics({**place, "seconds": seconds, "reward": 0.5, **totals})
    touch(folder, written)
    return folder


def touch(folder: Path, written: float) -> None:
    for path in folder.iterdir():
        os.utime(path, (written, written))


def test_progress_and_speed_of_the_last_rollouts(tmp_path: Path) -> None:
    status = run_status(going(tmp_path, rollouts=80), now=NOW)
    assert (status.name, status.state) == ("mine", "running")
    assert (status.rollouts, status.planned_rollouts, status.updates) == (80, 100, 160)
    assert status.seconds == 140.0
    assert status.speed.seconds_a_rollout == pytest.approx(3.0)
    assert status.speed.samples_a_second == pytest.approx(4.0)
    assert status.speed.forwards_a_second == pytest.approx(20.0)
    assert status.remaining_seconds == pytest.approx(60.0)
    assert status.figures["reward"] == 0.5
    assert status.silent_seconds == pytest.approx(5.0)


def test_first_rollouts_are_measured_from_the_start(tmp_path: Path) -> None:
    status = run_status(going(tmp_path, rollouts=4), now=NOW)
    assert status.speed.seconds_a_rollout == pytest.approx(1.0)
    assert status.remaining_seconds == pytest.approx(96.0)


def test_the_clock_may_end_a_run_first(tmp_path: Path) -> None:
    config = "training:\n  rollouts: 100\n  max_seconds: 150\n"
    assert run_status(going(tmp_path, rollouts=80, config=config), now=NOW).remaining_seconds == pytest.approx(10.0)


def test_a_line_that_is_half_written_is_left_out(tmp_path: Path) -> None:
    folder = going(tmp_path, rollouts=3)
    with (folder / METRICS_FILE).open("a") as file:
        file.write('{"rollout": 3, "update": 6, "sec')
    touch(folder, NOW)
    status = run_status(folder, now=NOW)
    assert (status.rollouts, status.updates) == (3, 6)
    assert status.problems == ("Left out of metrics.jsonl: line 7, which could not be read.",)


@pytest.mark.parametrize(("quiet", "state"), [(60, "running"), (130, "silent"), (100_000, "silent")])
def test_a_run_that_writes_no_more(tmp_path: Path, quiet: float, state: str) -> None:
    assert run_status(going(tmp_path, rollouts=80, written=NOW - quiet), now=NOW).state == state


def test_long_rollouts_may_be_silent_for_long(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    log.append_metrics({"rollout": 0, "update": 0, "seconds": 600.0})
    touch(tmp_path, NOW - 2000)
    assert run_status(tmp_path, now=NOW).state == "running"
    assert run_status(tmp_path, now=NOW + 2000).state == "silent"


def test_a_run_that_has_just_begun(tmp_path: Path) -> None:
    status = run_status(going(tmp_path, rollouts=0), now=NOW)
    assert (status.state, status.rollouts, status.seconds, status.remaining_seconds) == ("running", 0, None, None)
    assert not status.figures


def test_a_finished_run(tmp_path: Path) -> None:
    folder = going(tmp_path, rollouts=100, written=NOW - 10**6)
    log = RunLog(folder)
    records = (SampleRecord("a", "", 0, {"total": 0.25}, 0), SampleRecord("b", "", 0, {"total": 0.75}, 1))
    log.write_evaluation(Evaluation(0, "base", records))
    for rollout in range(4):
        log.append_alarm(Alarm("kl_drift", rollout, 2 * rollout, seen=f"KL {rollout}", remedy="less of it"))
    log.write_summary({"gain": 0.1, "alarms": {"kl_drift": 4}})
    status = run_status(folder, now=NOW)
    assert status.state == "finished"
    assert status.remaining_seconds is None
    assert [(item.label, item.score, item.samples) for item in status.evaluations] == [("base", 0.5, 2)]
    assert status.alarms == (
        "kl_drift: 4",
        *(f"kl_drift at rollout {n}, update {2 * n}: KL {n}; less of it" for n in (1, 2, 3)),
    )


def test_alarms_are_there_while_the_run_goes_on(tmp_path: Path) -> None:
    folder = going(tmp_path, rollouts=2)
    assert run_status(folder, now=NOW).alarms == ()
    RunLog(folder).append_alarm(Alarm("kl_drift", 1, 1, seen="KL 0.2", remedy="less of it"))
    assert run_status(folder, now=NOW).alarms == ("kl_drift: 1", "kl_drift at rollout 1, update 1: KL 0.2; less of it")


@pytest.mark.parametrize("config", ["training: 3\n", "- a list\n", "a: [1\n"])
def test_a_configuration_that_says_nothing(tmp_path: Path, config: str) -> None:
    status = run_status(going(tmp_path, rollouts=2, config=config), now=NOW)
    assert (status.name, status.planned_rollouts, status.rollouts) == (tmp_path.name, None, 2)


def test_rows_of_another_kind_are_survived(tmp_path: Path) -> None:
    rows = [{"rollout": "x"}, {"update": 1}, {"rollout": 1, "seconds": "NaN"}, {"rollout": 2, "seconds": 4.0}]
    (tmp_path / METRICS_FILE).write_text("\n".join(json.dumps(row) for row in rows))
    touch(tmp_path, NOW)
    assert run_status(tmp_path, now=NOW).rollouts == 3


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a folder; give the folder of a run"):
        run_status(tmp_path / "nothing", now=NOW)
    with pytest.raises(ValueError, match="holds nothing that a run writes"):
        run_status(tmp_path, now=NOW)
