"""Runs that go on: from where, as what, and where a signal ends them."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from torch import Tensor

from difalign.core.types import Metadata, RewardOutput
from difalign.report.run_folder import read_run
from difalign.train.checkpoint import list_checkpoints
from difalign.train.interrupt import Interrupted
from tests.folders import file_contents
from tests.train.cut_short import assert_same_end, config_of, run_until
from tests.train.small_runs import (
    Brightness,
    painter,
    rows_of,
    run_toy,
    without_clocks,
)


@pytest.mark.parametrize("rollouts", [0, 1, 2, 5])
def test_resumed_run_ends_as_the_undisturbed_one(tmp_path: Path, undisturbed: Path, rollouts: int) -> None:
    run_until(tmp_path, rollouts, evaluation={"every": 2})
    summary = run_toy(config_of(tmp_path, evaluation={"every": 2}, resume="latest"))
    assert_same_end(tmp_path, undisturbed)
    expected = json.loads((undisturbed / "summary.json").read_text())
    assert without_clocks(summary) == {**without_clocks(expected), "resumed_at": [rollouts]}


def test_diagnostics_are_those_of_the_undisturbed_run(tmp_path: Path) -> None:
    """What was seen after the checkpoint is seen again; how often a run looks is free to change."""
    run_toy(config_of(tmp_path / "a", diagnostics={"every": 2}))
    run_until(tmp_path / "b", 5, diagnostics={"every": 2})
    later = list_checkpoints(tmp_path / "b")[-1].folder
    shutil.rmtree(later)  # the newest is of four rollouts now, and the fifth was looked at
    seen, again = (tmp_path / name / "diagnostics" for name in "ab")
    (again / "000004.json").write_text("of a rollout that is repeated")
    run_toy(config_of(tmp_path / "b", diagnostics={"every": 2}, resume="latest"))
    assert file_contents(again) == file_contents(seen)
    assert len(file_contents(seen)) == 6
    run_until(tmp_path / "c", 5, diagnostics={"every": 1})
    run_toy(config_of(tmp_path / "c", diagnostics={"every": 0}, resume="latest"))
    assert_same_end(tmp_path / "c", tmp_path / "a")
    assert sorted(path.stem for path in (tmp_path / "c" / "diagnostics").glob("*.json"))[-1] == "000004"


def test_full_training_is_resumed_too(tmp_path: Path) -> None:
    straight, resumed = painter(), painter()
    run_toy(config_of(tmp_path / "a", training={"trainable": "full"}), pipeline=straight)
    run_until(tmp_path / "b", 3, training={"trainable": "full"})
    run_toy(config_of(tmp_path / "b", training={"trainable": "full"}, resume="latest"), pipeline=resumed)
    assert resumed.weights() == straight.weights() != painter().weights()


def test_scores_before_training_are_not_measured_again(tmp_path: Path) -> None:
    run_until(tmp_path, 3)
    pipeline = painter()
    summary = run_toy(config_of(tmp_path, resume="latest"), pipeline=pipeline)
    trained = sum(row["rows"] for row in rows_of(tmp_path)[3:])
    # The dry pass, three rollouts and one evaluation.
    assert sum(pipeline.batches) == 2 * 8 + 3 * 2 * 4 * 4 + trained + 10 * 4
    assert summary["evaluation_forwards"] == 2 * 10 * 4


def test_seconds_are_those_of_all_processes(tmp_path: Path) -> None:
    run_until(tmp_path, 3)
    path = list_checkpoints(tmp_path)[-1].folder / "run.json"
    seconds = json.loads(path.read_text())["training_seconds"]
    assert seconds > 0.0
    summary = run_toy(config_of(tmp_path, resume="latest"))
    stamps = [row["seconds"] for row in rows_of(tmp_path)]
    assert stamps == sorted(stamps)
    assert stamps[2] <= seconds < stamps[3] <= summary["training_seconds"] < summary["seconds"]


def test_time_limit_counts_what_has_passed(tmp_path: Path) -> None:
    run_until(tmp_path, 3)
    summary = run_toy(config_of(tmp_path, resume="latest", training={"max_seconds": 1e-9}))
    assert summary["rollouts"] == 3  # no further one


def test_finished_run_is_extended(tmp_path: Path, undisturbed: Path) -> None:
    """Three rollouts and then three more are six: nothing of the first end stays in the way."""
    every = {"every": 2}
    run_toy(config_of(tmp_path, training={"rollouts": 4}, evaluation=every))
    assert read_run(tmp_path).summary is not None
    run_toy(config_of(tmp_path, evaluation=every, resume="latest"))
    assert_same_end(tmp_path, undisturbed)


def test_finished_run_that_is_resumed_only_evaluates(tmp_path: Path, undisturbed: Path) -> None:
    shutil.copytree(undisturbed, tmp_path / "run")
    pipeline = painter()
    run_toy(config_of(tmp_path / "run", evaluation={"every": 2}, resume="latest"), pipeline=pipeline)
    assert sum(pipeline.batches) == 10 * 4
    assert_same_end(tmp_path / "run", undisturbed)


def test_older_checkpoint_is_taken_when_named(tmp_path: Path, undisturbed: Path) -> None:
    run_until(tmp_path, 4, evaluation={"every": 2})
    run_toy(config_of(tmp_path, evaluation={"every": 2}, resume=str(tmp_path / "checkpoints" / "000003")))
    assert_same_end(tmp_path, undisturbed)
    run_toy(config_of(tmp_path, evaluation={"every": 2}, resume="000005"))
    assert_same_end(tmp_path, undisturbed)


@pytest.mark.parametrize(("every", "kept"), [(0, [6]), (4, [4, 6]), (20, [0, 6])])
def test_checkpoints_are_those_asked_for_and_the_end(tmp_path: Path, every: int, kept: list[int]) -> None:
    run_toy(config_of(tmp_path, training={"checkpoint": {"every": every, "keep": 2}}))
    assert [checkpoint.rollout for checkpoint in list_checkpoints(tmp_path)] == kept


def test_checkpoints_change_nothing(tmp_path: Path, undisturbed: Path) -> None:
    run_toy(config_of(tmp_path, training={"checkpoint": {"every": 0}}, evaluation={"every": 2}))
    assert_same_end(tmp_path, undisturbed)


def test_configuration_in_the_folder_says_nothing_of_resuming(tmp_path: Path) -> None:
    run_until(tmp_path, 2)
    run_toy(config_of(tmp_path, resume="latest"))
    text = (tmp_path / "config.yaml").read_text()
    assert "resume: null" in text
    assert "resume_with_changes: false" in text


def test_overwriting_removes_the_checkpoints_of_the_run_before(tmp_path: Path) -> None:
    run_toy(config_of(tmp_path))
    run_until(tmp_path, 0, overwrite=True, training={"checkpoint": {"every": 0}})
    assert list_checkpoints(tmp_path) == ()


# --- signals -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Signalled(Brightness):
    """Sends a signal to its own process while it scores for the n-th time."""

    at: int = 3
    signum: signal.Signals = signal.SIGTERM
    calls: list[str] = field(default_factory=list)

    def score(
        self, media: Tensor, prompts: Sequence[str], *, metadata: Metadata | None = None, sigma: float | None = None
    ) -> RewardOutput:
        self.calls.append("score")
        if len(self.calls) == self.at:
            os.kill(os.getpid(), self.signum)
        return super().score(media, prompts, metadata=metadata, sigma=sigma)


@pytest.mark.parametrize(
    ("signum", "at", "done"),  # two calls score the samples before training, then one a rollout, two after the second
    [
        (signal.SIGINT, 2, 0),
        (signal.SIGTERM, 4, 2),
        (signal.SIGTERM, 5, 2),
        (signal.SIGINT, 7, 3),
        (signal.SIGINT, 12, 6),
    ],
)
def test_signal_ends_the_rollout_saves_and_stops(
    tmp_path: Path,
    undisturbed: Path,
    signum: signal.Signals,
    at: int,
    done: int,
    capfd: pytest.CaptureFixture[str],
) -> None:
    handler = signal.getsignal(signum)
    reward = Signalled(at=at, signum=signum)
    config = config_of(tmp_path, evaluation={"every": 2}, training={"checkpoint": {"every": 0}})
    with pytest.raises(Interrupted, match=f"after {done} of 6 rollouts; .*resume=latest") as stop:
        run_toy(config, reward=reward)
    assert stop.value.exit_code == 128 + signum
    assert f"{signum.name}: stopping after this rollout" in capfd.readouterr().err
    assert signal.getsignal(signum) is handler
    assert [checkpoint.rollout for checkpoint in list_checkpoints(tmp_path)] == [done]
    assert len(read_run(tmp_path).metrics) == done
    assert read_run(tmp_path).summary is None
    run_toy(config_of(tmp_path, evaluation={"every": 2}, resume="latest"))
    assert_same_end(tmp_path, undisturbed)
