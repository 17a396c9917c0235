"""A process that dies is named by the others, which stop in time; what is on the disk is whole."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from torch import distributed

from difalign.train.checkpoint import find_damage, list_checkpoints
from difalign.train.vital_signs import FAILED, VitalSigns
from tests.train.gloo_worker import LOST, job
from tests.train.killable_worker import Kill
from tests.train.launched import end, finish, launch, said, start
from tests.train.small_runs import WEIGHTS, run_toy, toy_run_config, weights_of
from tests.train.together import ThreadRuntime, run_together

BROKEN = RuntimeError("[gloo/transport/tcp/pair.cc:537] Connection closed by peer [127.0.0.1]:1")


@dataclass(frozen=True)
class Process(ThreadRuntime):
    """A process among threads, around a store in memory."""

    store: Any

    def open_store(self, seconds: float) -> Any:
        return self.store


def listen(world: int, body: Any) -> list[Any]:
    """``body(signs, left, rank)`` in ``world`` processes: what each told, the codes it left with, and its error."""
    store = distributed.HashStore()

    def process(runtime: ThreadRuntime) -> tuple[list[str], list[int], str | None]:
        told: list[str] = []
        left: list[int] = []
        signs = VitalSigns(
            Process(runtime.rank, runtime.meeting, store),  # type: ignore[arg-type]
            silence=1.0,
            beat=0.05,
            say=told.append,
            leave=left.append,
        )
        try:
            with signs:
                body(signs, left, runtime.rank)
        except (RuntimeError, FloatingPointError) as error:
            return told, left, str(error)
        return told, left, None

    return run_together(world, process)


def wait_until(condition: Any, seconds: float = 10.0) -> None:
    last = time.monotonic() + seconds
    while not condition() and time.monotonic() < last:
        time.sleep(0.01)


def test_processes_that_live_hear_one_another() -> None:
    assert listen(3, lambda signs, left, rank: time.sleep(1.5)) == [([], [], None)] * 3


def test_one_alone_has_no_store_and_no_thread() -> None:
    before = threading.active_count()
    assert listen(1, lambda signs, left, rank: signs.stage("sampling")) == [([], [], None)]
    assert threading.active_count() == before


def test_a_silent_process_is_named_with_its_stage_and_the_others_leave() -> None:
    def body(signs: VitalSigns, left: list[int], rank: int) -> None:
        signs.stage("scoring" if rank == 1 else "sampling")
        if rank == 1:
            time.sleep(0.2)
            signs._over.set()  # its thread falls silent, as all of it does when a process dies
            time.sleep(2.5)
        else:
            wait_until(lambda: left)

    (told, left, _), (_, silent, _), (others, _, _) = listen(3, body)
    assert left[0] == FAILED
    assert not silent
    assert "process 1 of 3 has given no sign of life for 1 seconds; it was scoring" in told[0]
    assert "Process 0 stops, in sampling" in told[0]
    assert "Process 2 stops, in sampling" in others[0]


def test_a_process_that_ends_by_an_error_says_why() -> None:
    def body(signs: VitalSigns, left: list[int], rank: int) -> None:
        signs.stage("training")
        if rank == 0:
            raise FloatingPointError("the loss is not finite\nand more")
        time.sleep(0.3)
        raise BROKEN

    (_, _, own), (_, _, others) = listen(2, body)
    assert own is not None
    assert own.startswith("the loss is not finite")
    assert others is not None
    assert "process 0 of 2 ended: FloatingPointError: the loss is not finite; it was training" in others


def test_an_error_that_is_nobody_elses_stays_what_it_is() -> None:
    def body(signs: VitalSigns, left: list[int], rank: int) -> None:
        if rank == 0:
            raise BROKEN
        time.sleep(0.8)

    (_, _, own), (told, left, other) = listen(2, body)
    assert own == str(BROKEN)
    assert (told, left, other) == ([], [], None)


# --- two processes, one of which is killed for real ----------------------------------------------------------------

SECTIONS: dict[str, Any] = {
    "training": {"rollouts": 4, "checkpoint": {"every": 1, "keep": 9}},
    "processes": {"silence_seconds": 8},
}
TOY, RUNTIME = "tests.toys:ToyPipeline", "difalign.train.runtime:Runtime"
# A process of two predicts in the dry pass (2), in evaluation (4), and a rollout in sampling (4) and in training (2).
SAMPLING = Kill(f"{TOY}.predict", 15)
TRAINING = Kill(f"{RUNTIME}.backward", 2, "after")
SAVING = Kill("safetensors.torch:save_file", 8, "half")


def check_loss(folder: Path, rank: int, kill: Kill, stage: str) -> None:
    """Kill one of two; the other says so in time, and one process alone brings the run to its end."""
    logs = folder.with_name("logs")
    processes = start(2, job(folder, SECTIONS, kill=(rank, kill)), logs=logs)
    assert processes[rank].wait(timeout=300) == -signal.SIGKILL, said(logs)[rank]
    codes = finish(processes, seconds=60)
    other = said(logs)[1 - rank]
    assert codes[1 - rank] == LOST == FAILED, other
    assert f"error: process {rank} of 2" in other
    assert f"it was {stage}" in other
    check_disk(folder)


def check_disk(folder: Path) -> None:
    """Every checkpoint is whole, and one process alone brings the run to the end that it would have had."""
    checkpoints = list_checkpoints(folder)
    assert checkpoints
    assert [find_damage(checkpoint) for checkpoint in checkpoints] == [None] * len(checkpoints)
    run_toy(toy_run_config(folder, **SECTIONS, resume="latest"))
    expected = folder.with_name("expected")
    run_toy(toy_run_config(expected, **SECTIONS))
    for name, value in weights_of(expected).items():
        assert (weights_of(folder)[name] - value).abs().max() < 1e-5
    assert (folder / WEIGHTS).is_file()


@pytest.mark.multiproc
def test_killed_while_sampling(tmp_path: Path) -> None:
    check_loss(tmp_path / "run", 1, SAMPLING, "sampling")


@pytest.mark.slow
@pytest.mark.multiproc
def test_killed_while_training(tmp_path: Path) -> None:
    check_loss(tmp_path / "run", 1, TRAINING, "training")


@pytest.mark.slow
@pytest.mark.multiproc
def test_main_process_killed_while_saving(tmp_path: Path) -> None:
    """Under a launcher, which keeps what it last said, and asks the other to stop."""
    folder = tmp_path / "run"
    done = launch(2, job(folder, SECTIONS, kill=(0, SAVING)))
    assert done.returncode != 0
    assert "error: process 0 of 2 has given no sign of life" in done.stderr, done.stderr
    assert "it was saving" in done.stderr
    check_disk(folder)


@pytest.mark.slow
@pytest.mark.multiproc
def test_a_process_that_hangs_does_not_hold_the_other(tmp_path: Path) -> None:
    """No connection is closed here: only the silence tells."""
    logs, folder = tmp_path / "logs", tmp_path / "run"
    processes = start(2, job(folder, {**SECTIONS, "training": {"rollouts": 10_000}}), logs=logs)
    wait_until(lambda: (folder / "metrics.jsonl").is_file() or processes[0].poll() is not None, seconds=300)
    os.kill(processes[1].pid, signal.SIGSTOP)
    try:
        assert processes[0].wait(timeout=60) == FAILED, said(logs)[0]
        assert "process 1 of 2 has given no sign of life for" in said(logs)[0]
    finally:
        end(processes)
