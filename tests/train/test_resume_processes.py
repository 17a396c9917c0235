"""A run goes on with another number of processes, and a signal to one of them stops all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from difalign.train.checkpoint import list_checkpoints
from tests.train.gloo_worker import job
from tests.train.launched import run
from tests.train.small_runs import WEIGHTS, rows_of, run_toy, toy_run_config, weights_of

pytestmark = [pytest.mark.slow, pytest.mark.multiproc]

SECTIONS: dict[str, Any] = {
    "training": {"rollouts": 4, "ema": {"enabled": True, "every": 1}, "checkpoint": {"every": 1, "keep": 9}},
}


def run_on(world: int, folder: Path, *, signal: dict[str, int] | None = None, **top: Any) -> list[int]:
    """Exit codes of the processes, in order of rank."""
    logs = folder.with_name(f"{folder.name}-logs")
    return run(world, job(folder, {**SECTIONS, **top}, signal=signal), logs=logs)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone") / "run"
    run_toy(toy_run_config(folder, **SECTIONS))
    return folder


def assert_close(folder: Path, expected: Path) -> None:
    """Equal up to the order in which processes are summed."""
    for name, value in weights_of(expected).items():
        torch.testing.assert_close(weights_of(folder)[name], value, rtol=1e-5, atol=1e-6)
    rows = [(row["rollout"], row["update"], row["denoiser_forwards"]) for row in rows_of(folder)]
    assert rows == [(row["rollout"], row["update"], row["denoiser_forwards"]) for row in rows_of(expected)]
    assert (folder / WEIGHTS).is_file()


def test_signal_to_one_process_stops_both_and_one_alone_goes_on(tmp_path: Path, alone: Path) -> None:
    folder = tmp_path / "run"
    # A process scores once before training and once a rollout: the fourth time is in the third rollout.
    assert run_on(2, folder, signal={"rank": 1, "at": 4}) == [143, 143]
    assert [checkpoint.rollout for checkpoint in list_checkpoints(folder)] == [0, 1, 2, 3]
    assert len(rows_of(folder)) == 3
    summary = run_toy(toy_run_config(folder, **SECTIONS, resume="latest"))
    assert (summary["resumed_at"], summary["processes"]) == ([3], 1)
    assert_close(folder, alone)


def test_two_processes_take_over_from_one(tmp_path: Path, alone: Path) -> None:
    folder = tmp_path / "run"
    run_toy(toy_run_config(folder, **{**SECTIONS, "training": {**SECTIONS["training"], "rollouts": 2}}))
    assert run_on(2, folder, resume="latest") == [0, 0]
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["resumed_at"], summary["processes"]) == ([2], 2)
    assert_close(folder, alone)


def test_two_processes_take_over_from_three(tmp_path: Path, alone: Path) -> None:
    """Three prompts an update: one for each of three, then two and one."""
    sections = {"sampling": {"prompts_per_update": 3}}
    expected = tmp_path / "expected"
    run_toy(toy_run_config(expected, **SECTIONS, **sections))
    folder = tmp_path / "run"
    training = {**SECTIONS["training"], "rollouts": 2}
    assert run_on(3, folder, **sections, training=training) == [0, 0, 0]
    before = {path.name: path.read_bytes() for path in list_checkpoints(folder)[-1].folder.iterdir()}
    assert run_on(2, folder, **sections, resume="latest") == [0, 0]
    after = {path.name: path.read_bytes() for path in (folder / "checkpoints" / "000002").iterdir()}
    assert after == before
    assert_close(folder, expected)
    for checkpoint in list_checkpoints(expected):  # what was learnt, its moments and its average, rollout by rollout
        for name in ("weights", "optimizer", "average"):
            ours, theirs = (
                load_file(root / "checkpoints" / checkpoint.folder.name / f"{name}.safetensors")
                for root in (folder, expected)
            )
            for key, value in theirs.items():
                torch.testing.assert_close(ours[key], value, rtol=1e-5, atol=1e-6)
