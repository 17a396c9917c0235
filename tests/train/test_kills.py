"""A run that is killed with SIGKILL, wherever it stands, and resumed, ends as the one that nobody disturbed.

Equal means equal: weights, moments, averages, rows of metrics, scores and pixels, to the last bit.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from difalign.train.checkpoint import find_damage, list_checkpoints
from tests.house.repository import ROOT
from tests.train.killable_worker import Kill, send
from tests.train.small_runs import WEIGHTS, rows_without_clocks, without_clocks

# Five rollouts of two updates, an average each, an evaluation every second, a checkpoint every rollout.
SECTIONS: dict[str, Any] = {
    "training": {
        "rollouts": 5,
        "updates_per_rollout": 2,
        "ema": {"enabled": True, "every": 1, "max_decay": 0.5},
        "checkpoint": {"every": 1, "keep": 2},
    },
    "evaluation": {"every": 2},
}

# The same with an interval that grows, stages that are remembered, and as many updates as the selection gives.
STAGES: dict[str, Any] = {
    "sampling": {
        "plan": {"kind": "split", "children": 3},
        "draw": "uniform",
        "prompts_per_update": 6,
        "samples_per_prompt": 1,
    },
    "curriculum": {"first": 2, "last": 4, "stages": 4},
    "objective": {
        "advantage": {"statistics": "stage_history", "ddof": 1, "group_by": "seed", "selection": {}},
        "clip_range": 0.1,
    },
    "training": {**SECTIONS["training"], "updates_per_rollout": 1, "inner_epochs": 2, "trajectories_per_update": 4},
}

TOY, RUNS = "tests.toys:ToyPipeline", "tests.train.small_runs"
RUNTIME, LOG, DISK = "difalign.train.runtime:Runtime", "difalign.report.log:RunLog", "difalign.train.checkpoint"
# Of a save: six files, each written, synced and hashed; the folder renamed; one older checkpoint moved and removed.
FIRST = (
    Kill(f"{TOY}.predict", 40),  # in the middle of sampling
    Kill(f"{RUNTIME}.backward", 9, "inside"),  # in the middle of a backward pass
    Kill("safetensors.torch:save_file", 8, "half"),  # in the middle of a file of the third checkpoint
    Kill(f"{DISK}:_move_out", 2, "after"),  # in the middle of a rotation
)
KILLS = (
    Kill(f"{TOY}.predict", 3),  # the scores before training: there is no checkpoint yet
    Kill(f"{TOY}.predict", 75),
    Kill(f"{RUNS}:Brightness.score", 8),
    Kill(f"{RUNS}:Brightness.score", 12, "after"),
    Kill(f"{RUNTIME}.backward", 20, "inside"),
    Kill(f"{RUNTIME}.backward", 11),
    Kill(f"{RUNTIME}.clip_gradients", 5, "after"),
    Kill("difalign.train.ema:MovingAverage.update", 6),  # the weights have moved, their average has not
    Kill(f"{LOG}.append_metrics", 5),
    Kill(f"{LOG}.append_metrics", 5, "after"),  # between two rows of one rollout
    Kill("os:write", 7, "after"),
    Kill(f"{LOG}.write_evaluation", 2),
    Kill("difalign.report.images:save_grid", 2, "after"),  # the picture is there, its scores are not
    Kill(f"{LOG}.write_evaluation", 3, "after"),  # evaluated, but not in a checkpoint yet
    Kill("safetensors.torch:save_file", 1, "half"),  # of the very first checkpoint
    Kill("safetensors.torch:save_file", 9, "after"),
    Kill("difalign.train.state:write_json", 3, "half"),
    Kill(f"{DISK}:_sync", 11),
    Kill(f"{DISK}:_sync", 23),
    Kill("pathlib:Path.rename", 3),  # whole, but not under its name
    Kill("pathlib:Path.rename", 3, "after"),
    Kill("shutil:rmtree", 1),  # one checkpoint moved out, not removed
    Kill("shutil:rmtree", 2, "after"),
    Kill("tests.train.small_runs:Painter.save_lora", 1),
    Kill("tests.train.small_runs:Painter.save_lora", 1, "after"),
    Kill(f"{LOG}.write_summary", 1, "after"),
)
# While a run is being resumed.
AGAIN = (
    Kill("difalign.train.policy_gradient:PolicyGradient.restore", 1, "after"),
    Kill(f"{LOG}.return_to", 1),
    Kill("os:fsync", 1),
    Kill(f"{TOY}.predict", 2),
)


@dataclass
class Worker:
    """The process that runs the jobs."""

    process: subprocess.Popen[str]

    def run(self, folder: Path, *, kill: Kill | None = None, **top: Any) -> int:
        """The exit code of a run in ``folder``, or minus the signal that ended it."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(send({"folder": str(folder), "sections": {**SECTIONS, **top}}, kill))
        self.process.stdin.flush()
        return int(self.process.stdout.readline())


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    command = [sys.executable, "-m", "tests.train.killable_worker"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield Worker(process)
        assert process.stdin is not None
        process.stdin.close()


@pytest.fixture(scope="module")
def undisturbed(worker: Worker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    assert worker.run(folder) == 0
    return folder


def go_on(worker: Worker, folder: Path, kill: Kill | None = None, **top: Any) -> int:
    """Resume, or begin again if the process died before its first checkpoint."""
    if list_checkpoints(folder):
        return worker.run(folder, kill=kill, resume="latest", **top)
    return worker.run(folder, kill=kill, overwrite=True, **top)


def assert_same(folder: Path, expected: Path) -> None:
    """Everything that the run says and has learnt, to the last bit."""
    assert rows_without_clocks(folder) == rows_without_clocks(expected)
    assert (folder / WEIGHTS).read_bytes() == (expected / WEIGHTS).read_bytes()
    evaluations = sorted(path.name for path in (expected / "evaluations").iterdir())
    assert sorted(path.name for path in (folder / "evaluations").iterdir()) == evaluations
    for name in evaluations:
        assert (folder / "evaluations" / name).read_bytes() == (expected / "evaluations" / name).read_bytes()
    summaries = [without_clocks(json.loads((root / "summary.json").read_text())) for root in (folder, expected)]
    assert {**summaries[0], "resumed_at": []} == summaries[1]
    checkpoints = list_checkpoints(expected)
    assert [c.rollout for c in list_checkpoints(folder)] == [c.rollout for c in checkpoints] == [4, 5]
    for checkpoint in checkpoints:  # weights, moments, averages and counters
        for path in checkpoint.folder.iterdir():
            if path.name not in ("run.json", "manifest.json"):  # which hold clocks
                assert (folder / "checkpoints" / checkpoint.folder.name / path.name).read_bytes() == path.read_bytes()
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"000004", "000005"}


def check_killed_run(worker: Worker, undisturbed: Path, folder: Path, kill: Kill) -> None:
    assert worker.run(folder, kill=kill) == -signal.SIGKILL
    complete = list_checkpoints(folder)
    assert [find_damage(checkpoint) for checkpoint in complete] == [None] * len(complete)
    assert go_on(worker, folder) == 0
    assert_same(folder, undisturbed)


@pytest.mark.parametrize("kill", FIRST, ids=str)
def test_killed_and_resumed_run_ends_as_the_undisturbed_one(
    worker: Worker, undisturbed: Path, tmp_path: Path, kill: Kill
) -> None:
    check_killed_run(worker, undisturbed, tmp_path / "run", kill)


@pytest.mark.slow
@pytest.mark.parametrize("kill", KILLS, ids=str)
def test_killed_anywhere(worker: Worker, undisturbed: Path, tmp_path: Path, kill: Kill) -> None:
    check_killed_run(worker, undisturbed, tmp_path / "run", kill)


def test_stages_go_on_with_their_interval_and_their_history(worker: Worker, tmp_path: Path) -> None:
    """Killed in the fourth rollout: the rewards of earlier stages and the place in the schedule are not lost."""
    whole, folder = tmp_path / "whole", tmp_path / "run"
    assert worker.run(whole, **STAGES) == 0
    assert [row["interval_start"] for row in rows_without_clocks(whole)][-1] == 0
    assert worker.run(folder, kill=Kill(f"{RUNTIME}.backward", 20, "inside"), **STAGES) == -signal.SIGKILL
    assert list_checkpoints(folder)
    assert go_on(worker, folder, **STAGES) == 0
    assert_same(folder, whole)


@pytest.mark.slow
@pytest.mark.parametrize("again", AGAIN, ids=str)
def test_killed_while_it_is_resumed(worker: Worker, undisturbed: Path, tmp_path: Path, again: Kill) -> None:
    folder = tmp_path / "run"
    assert worker.run(folder, kill=Kill(f"{LOG}.append_metrics", 6, "after")) == -signal.SIGKILL
    assert go_on(worker, folder, again) == -signal.SIGKILL
    assert go_on(worker, folder) == 0
    assert_same(folder, undisturbed)


@pytest.mark.slow
def test_killed_again_and_again(worker: Worker, undisturbed: Path, tmp_path: Path) -> None:
    """Every process dies in its second rollout or its third, and still the run comes to its end."""
    folder, lives = tmp_path / "run", 1
    while code := go_on(worker, folder, Kill(f"{TOY}.predict", 25)):
        assert code == -signal.SIGKILL
        lives += 1
    assert lives > 3
    assert_same(folder, undisturbed)


def test_comparison_sees_a_bit(worker: Worker, undisturbed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(undisturbed, folder)
    assert_same(folder, undisturbed)
    path = folder / "checkpoints" / "000005" / "optimizer.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1]))
    with pytest.raises(AssertionError):
        assert_same(folder, undisturbed)
