"""When a run ends, and what it leaves where another was: on a toy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from difalign.core.types import Metadata, RewardOutput
from difalign.train.run import Task, run_training
from difalign.train.runtime import Runtime
from tests.folders import file_contents, file_names
from tests.train.small_runs import (
    WEIGHTS,
    Brightness,
    painter,
    rows_of,
    rows_without_clocks,
    run_toy,
    toy_run_config,
    weights_of,
)

# --- a folder that was used --------------------------------------------------------------------------------------


def test_overwriting_starts_clean(tmp_path: Path) -> None:
    folder, fresh = tmp_path / "used", tmp_path / "fresh"
    run_toy(toy_run_config(folder, seed=1, training={"rollouts": 5}, evaluation={"every": 2}))
    run_toy(toy_run_config(folder, overwrite=True, training={"trainable": "full"}))
    run_toy(toy_run_config(folder, overwrite=True))
    run_toy(toy_run_config(fresh))
    assert file_names(folder) == file_names(fresh)
    rows = [rows_without_clocks(root) for root in (folder, fresh)]
    assert rows[0] == rows[1]
    assert weights_of(folder) == weights_of(fresh)


@dataclass(frozen=True)
class Failing(Brightness):
    """No number, at once."""

    def score(
        self, media: Tensor, prompts: Sequence[str], *, metadata: Metadata | None = None, sigma: float | None = None
    ) -> RewardOutput:
        return RewardOutput(torch.full((len(prompts),), float("nan")))


@pytest.mark.parametrize("trainable", ["lora", "full"])
def test_run_that_fails_leaves_no_weights_of_the_one_before(tmp_path: Path, trainable) -> None:
    run_toy(toy_run_config(tmp_path, training={"trainable": trainable}))
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="reward brightness gave nan"):
        run_toy(toy_run_config(tmp_path, overwrite=True), reward=Failing())
    assert file_names(tmp_path) == ["config.yaml", "environment.json", "notes.txt"]


def test_model_that_cannot_be_loaded_costs_no_earlier_run(tmp_path: Path) -> None:
    config = toy_run_config(tmp_path)
    run_toy(config)
    before = file_contents(tmp_path)

    def build(runtime: Runtime) -> Task:
        raise OSError("no such weights")

    with pytest.raises(OSError, match="no such weights"):
        run_training(toy_run_config(tmp_path, overwrite=True), build)
    assert file_contents(tmp_path) == before


# --- when it stops -----------------------------------------------------------------------------------------------


def test_time_limit_stops_after_a_rollout(tmp_path: Path) -> None:
    summary = run_toy(toy_run_config(tmp_path, training={"rollouts": 50, "max_seconds": 1e-9}))
    assert (summary["rollouts"], summary["updates"]) == (1, 1)
    assert summary["denoiser_forwards"] == 2 * 4 * 4
    assert len(rows_of(tmp_path)) == 1
    assert (tmp_path / "evaluations" / "000001.json").is_file()
    assert (tmp_path / WEIGHTS).is_file()


def test_time_limit_that_is_not_reached_stops_nothing(tmp_path: Path) -> None:
    limited = run_toy(toy_run_config(tmp_path / "limited", training={"max_seconds": 3600.0}))
    free = run_toy(toy_run_config(tmp_path / "free"))
    assert limited["rollouts"] == 3
    assert limited["tuned"] == free["tuned"]


def test_equal_rewards_train_nothing_and_end_well(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Indifferent(Brightness):
        def score(
            self, media: Tensor, prompts: Sequence[str], *, metadata: Metadata | None = None, sigma: float | None = None
        ) -> RewardOutput:
            return RewardOutput(torch.full((len(prompts),), 0.3))

    summary = run_toy(toy_run_config(tmp_path), reward=Indifferent())
    assert summary["gain"] == 0.0
    assert summary["alarms"] == {"no_reward_spread": 1}  # it lasts, so it is said once
    assert weights_of(tmp_path) == painter().weights()
    assert all(row["rows"] == 0 and row["zero_variance_groups"] == 1.0 for row in rows_of(tmp_path))
