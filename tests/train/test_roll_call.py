"""What is asked of all processes before a run: differences are named on all of them, and nothing is left behind."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from difalign.core.config import RunConfig
from difalign.core.errors import ConfigError
from difalign.core.prompts import Prompt
from difalign.train import roll_call
from difalign.train.roll_call import (
    check_collectives,
    check_folder,
    check_space,
    code_facts,
    config_facts,
    prompt_facts,
    require_same,
    written_bytes,
)
from tests.train.small_runs import run_toy, toy_run_config
from tests.train.together import Meeting, ThreadRuntime, run_together

Usage = namedtuple("Usage", "total used free")


@dataclass(frozen=True)
class Process(ThreadRuntime):
    """A process among threads, with what the roll call asks of it besides."""

    def agree(self, value: Any) -> Any:
        return self.meeting.exchange(self.rank, value)[0]

    def meet(self, seconds: float) -> None:
        self.meeting.exchange(self.rank, None)


def together(world: int, body: Callable[[Any], Any]) -> list[Any]:
    return run_together(world, lambda runtime: body(Process(runtime.rank, runtime.meeting)))


def refusals(world: int, body: Callable[[Any], None]) -> list[str]:
    """The message that each process ends with."""

    def message(runtime: Process) -> str:
        with pytest.raises((ConfigError, RuntimeError)) as caught:
            body(runtime)
        return str(caught.value)

    return together(world, message)


ALONE = Process(0, Meeting(1))


def test_the_same_facts_everywhere() -> None:
    facts = {**code_facts(), **config_facts(RunConfig())}
    together(3, lambda runtime: require_same(runtime, facts))
    assert facts["training.learning_rate"] == "0.0003"
    assert {"python", "torch", "diffusers", "difalign's source"} <= facts.keys()


def test_a_difference_names_process_key_and_both_values_on_every_process() -> None:
    def body(runtime: Process) -> None:
        rate = 0.5 if runtime.rank == 2 else 0.25
        require_same(runtime, config_facts(RunConfig.model_validate({"training": {"learning_rate": rate}})))

    messages = refusals(3, body)
    assert len(set(messages)) == 1
    assert "process 2: training.learning_rate is 0.5, and on process 0 0.25" in messages[0]
    assert "process 1" not in messages[0]


def test_a_missing_library_and_many_differences() -> None:
    def body(runtime: Process) -> None:
        require_same(runtime, {f"library{n:02d}": "1" for n in range(12 - 12 * runtime.rank)} | {"torch": "2.12"})

    assert "library00 is missing, and on process 0 1" in refusals(2, body)[0]
    assert "... and 4 more" in refusals(2, body)[0]


def test_other_prompts_are_seen() -> None:
    lists = {"prompts.train": [Prompt("a red circle"), Prompt("two blue squares")]}
    assert prompt_facts(lists) == prompt_facts({"prompts.train": list(lists["prompts.train"])})
    assert prompt_facts(lists) != prompt_facts({"prompts.train": lists["prompts.train"][::-1]})


def test_collectives() -> None:
    together(3, check_collectives)
    check_collectives(ALONE)  # type: ignore[arg-type]


def test_a_process_that_adds_wrongly(monkeypatch: pytest.MonkeyPatch) -> None:
    total = Process.total
    monkeypatch.setattr(Process, "total", lambda self, values: [2 * value for value in total(self, values)])
    assert all("sum gave [2.0, 4.0], not [1.0, 2.0]" in message for message in refusals(2, check_collectives))


def test_folder_that_all_see_is_left_as_it_was(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "run"
    together(2, lambda runtime: check_folder(runtime, folder))
    assert not list(tmp_path.iterdir())
    folder.mkdir(parents=True)
    (folder / "kept").write_text("mine")
    together(2, lambda runtime: check_folder(runtime, folder))
    assert [path.name for path in folder.iterdir()] == ["kept"]


def test_folder_that_one_process_does_not_see(tmp_path: Path) -> None:
    def body(runtime: Process) -> None:
        check_folder(runtime, tmp_path / f"machine{runtime.rank // 2}" / "run", patience=0.05)

    messages = refusals(3, body)
    assert all("process 2 does not see what process 0 writes there" in message for message in messages)
    assert not list(tmp_path.iterdir())


def test_folder_that_appears_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Network file systems show a new file some seconds later."""
    looks: list[bool] = []
    is_there = roll_call._is_there
    monkeypatch.setattr(roll_call, "_is_there", lambda file: looks.append(True) or (len(looks) > 2 and is_there(file)))
    check_folder(ALONE, tmp_path / "run")  # type: ignore[arg-type]
    assert len(looks) == 3


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    messages = refusals(2, lambda runtime: check_folder(runtime, tmp_path / "file" / "run"))
    assert all("cannot be written (Not a directory)" in message for message in messages)


def test_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roll_call.shutil, "disk_usage", lambda path: Usage(10**9, 0, 50_000_000))
    together(2, lambda runtime: check_space(runtime, tmp_path / "not" / "yet", 49_000_000))
    messages = refusals(2, lambda runtime: check_space(runtime, tmp_path, 51_000_000))
    assert all("has 50.0 MB free, and the run will write about 51.0 MB" in message for message in messages)


def test_what_a_run_writes_is_estimated_from_above(tmp_path: Path) -> None:
    training = {"rollouts": 3, "updates_per_rollout": 2}
    config = toy_run_config(tmp_path, evaluation={"every": 1}, training=training, diagnostics={"every": 1})
    run_toy(config)
    written = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    estimate = written_bytes(config, weights=8, heldout=5)
    assert written < estimate < 45e6
    assert written_bytes(config, weights=10**9, heldout=5) - estimate == pytest.approx(1.1e9, rel=1e-6)


def test_a_disk_that_is_too_small_stops_a_run_before_it_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roll_call.shutil, "disk_usage", lambda path: Usage(10**9, 0, 1000))
    with pytest.raises(ConfigError, match=r"0\.0 MB free"):
        run_toy(toy_run_config(tmp_path / "run"))
    assert not list(tmp_path.iterdir())


WORKER = """
import sys
from pathlib import Path
import torch
from difalign.core.config import RunConfig
from difalign.core.errors import ConfigError
from difalign.train.roll_call import call_roll, check_collectives
from difalign.train.runtime import Runtime
torch.set_num_threads(1)
folder, runtime = Path(sys.argv[1]), Runtime()

def attempt(name, body):
    try:
        body()
        said = "ok"
    except (ConfigError, RuntimeError) as error:
        said = f"{type(error).__name__}: {error}"
    (folder / f"{name}-{runtime.rank}.txt").write_text(said)

def config(**values):
    return RunConfig(output_dir=str(folder / "run"), **values)

attempt("sound", lambda: call_roll(config(), runtime))
attempt("seed", lambda: call_roll(config(seed=runtime.rank), runtime))
if runtime.rank == 0:
    attempt("absent", lambda: check_collectives(runtime, patience=1.0))
runtime.close(failed=True)
"""


@pytest.mark.multiproc
def test_two_gloo_processes(tmp_path: Path) -> None:
    """One launch for all: they agree, then differ in a setting, then one does not come."""
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launch, str(script), str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = {path.stem: path.read_text() for path in tmp_path.glob("*.txt")}
    assert said["sound-0"] == said["sound-1"] == "ok"
    assert "ConfigError: the processes of the run differ: process 1: seed is 1, and on process 0 0" in said["seed-0"]
    assert said["seed-1"] == said["seed-0"]
    assert "RuntimeError: not all of 2 processes came to the first meeting within 1 seconds" in said["absent-0"]
    assert "anks 1 failed" in said["absent-0"]
    assert not (tmp_path / "run").exists()
