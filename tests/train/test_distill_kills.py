"""A distillation that is killed with SIGKILL, wherever it stands, and started again leaves the files of a whole one.

Equal means equal: walks, scores, students and their bank, to the last bit, and nothing half-written beside them.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

from tests.house.repository import ROOT
from tests.train.killable_worker import Kill
from tests.train.launched import cpu_environment

STORE, RUN = "difalign.train.estimate_store", "tests.train.distill_run"
KILLS = (
    Kill("tests.toys:ToyPipeline.predict", 3),  # before the first shard
    Kill("tests.toys:ToyPipeline.predict", 14),
    Kill("safetensors.torch:save_file", 2, "before"),
    Kill(f"{STORE}:EstimateStore.write", 3, "after"),
    Kill("os:fsync", 1),  # of the index, before it has its name
    Kill("os:fsync", 3),  # a shard is written but has no name yet
    Kill("tests.teachers:LinearReward.score", 2),  # the teacher is at work
    Kill("difalign.train.estimate_generation:write_labels", 2, "after"),
    Kill("torch.nn.utils:clip_grad_norm_", 2),  # within the first level
    Kill("torch.nn.utils:clip_grad_norm_", 4),  # within the second level
    Kill("safetensors.torch:save_file", 5, "after"),  # a student is written, and the bank does not know it
    Kill("difalign.train.distill_evaluation:write_text_atomically", 2),
)


@dataclass
class Worker:
    process: subprocess.Popen[str]

    def run(self, folder: Path, kill: Kill | None = None) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        job = {"folder": str(folder), "kill": None if kill is None else asdict(kill)}
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    with subprocess.Popen(
        [sys.executable, "-m", RUN, str(tmp_path_factory.mktemp("worker"))],
        cwd=ROOT,
        env=cpu_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield Worker(process)


@pytest.fixture(scope="module")
def undisturbed(worker: Worker, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("undisturbed")
    assert worker.run(folder) == 0
    return files(folder)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_nothing_is_left_beside_the_results(undisturbed: dict[str, bytes]):
    assert len(undisturbed) == 1 + 2 * 4 + 3 + 2
    assert not [name for name in undisturbed if Path(name).name.startswith(".")]


@pytest.mark.parametrize("kill", KILLS, ids=str)
def test_killed_and_started_again(worker: Worker, undisturbed: dict[str, bytes], tmp_path: Path, kill: Kill):
    assert worker.run(tmp_path, kill) == -signal.SIGKILL
    assert files(tmp_path) != undisturbed
    assert worker.run(tmp_path) == 0
    assert files(tmp_path) == undisturbed


def test_what_is_done_is_left_alone(worker: Worker, undisturbed: dict[str, bytes], tmp_path: Path):
    assert worker.run(tmp_path) == 0
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert worker.run(tmp_path, Kill("tests.toys:ToyPipeline.predict", 1)) == 0  # the network is not asked again
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == before
