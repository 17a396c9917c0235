"""Checkpoints that are not taken: damaged, foreign, of another configuration."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from difalign.core.config import RunConfig
from difalign.core.errors import ConfigError
from difalign.train.checkpoint import list_checkpoints, remove_checkpoint
from difalign.train.resume import FREE_KEYS, find_resume_point, read_run_state
from tests.folders import file_contents
from tests.train.cut_short import assert_same_end, config_of, run_until
from tests.train.small_runs import (
    painter,
    rows_of,
    run_toy,
)


def test_damaged_checkpoint_is_named_and_the_one_before_is_taken(
    tmp_path: Path, undisturbed: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run_until(tmp_path, 4, evaluation={"every": 2})
    damaged = tmp_path / "checkpoints" / "000004"
    os.truncate(damaged / "optimizer.safetensors", 8)
    run_toy(config_of(tmp_path, evaluation={"every": 2}, resume="latest"))
    error = " ".join(capfd.readouterr().err.split())
    assert f"skipped a damaged checkpoint, {damaged}: optimizer.safetensors has 8 bytes instead of" in error
    assert f"resumed from {tmp_path / 'checkpoints' / '000003'}, after 3 of 6 rollouts" in error
    assert_same_end(tmp_path, undisturbed)


def test_damaged_checkpoint_that_is_named_is_an_error(tmp_path: Path) -> None:
    run_until(tmp_path, 2)
    path = tmp_path / "checkpoints" / "000002"
    (path / "weights.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"000002: weights.safetensors is missing; use resume=latest, which skips"):
        find_resume_point(config_of(tmp_path, resume=str(path)), {})


def test_all_damaged_is_an_error_that_names_each(tmp_path: Path) -> None:
    run_until(tmp_path, 2)
    for checkpoint in list_checkpoints(tmp_path):
        (checkpoint.folder / "manifest.json").write_text("{")
    with pytest.raises(ConfigError) as error:
        find_resume_point(config_of(tmp_path, resume="latest"), {})
    assert str(error.value).count("manifest.json cannot be read") == 2
    assert "no checkpoint is sound; use overwrite=true without resume" in str(error.value)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: os.truncate(path, 10), r"metrics.jsonl of the run has 10 bytes, fewer than"),
        (lambda path: path.unlink(), r"has 0 bytes, fewer than"),
        (lambda path: path.write_bytes(path.read_bytes().replace(b"0", b"1")), "holds other rows than it held then"),
    ],
    ids=["cut", "missing", "changed"],
)
def test_rows_that_are_lost_are_not_passed_over(tmp_path: Path, damage: Callable[[Path], None], said: str) -> None:
    run_until(tmp_path, 2)
    damage(tmp_path / "metrics.jsonl")
    with pytest.raises(ConfigError, match=said):
        find_resume_point(config_of(tmp_path, resume="latest"), {})


@pytest.mark.parametrize("resume", ["latest", "000002", "nowhere/checkpoints/000002"])
def test_no_checkpoint_is_an_error(tmp_path: Path, resume: str) -> None:
    with pytest.raises(ConfigError, match=r"there is no checkpoint in .*checkpoints; leave resume out to start a run"):
        find_resume_point(config_of(tmp_path, resume=resume), {})


def test_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    for name in ("mine", "other"):
        run_until(tmp_path / name, 1)
    other = str(tmp_path / "other" / "checkpoints" / "000001")
    with pytest.raises(ConfigError, match=r"no checkpoint of the run in .*mine.* 000000, 000001; .*output_dir"):
        find_resume_point(config_of(tmp_path / "mine", resume=other), {})


def test_every_change_that_matters_is_listed(tmp_path: Path) -> None:
    run_until(tmp_path, 2)
    sections = {"seed": 3, "sampling": {"steps": 5, "plan": {"kind": "window", "size": 2, "low": 0, "high": 3}}}
    with pytest.raises(ConfigError) as error:
        find_resume_point(config_of(tmp_path, resume="latest", **sections), {})
    for line in (
        "seed: 0 then, 3 now",
        "sampling.steps: 4 then, 5 now",
        'sampling.plan.kind: "plain" then, "window" now',
        "sampling.plan.size: nothing then, 2 now",
        "sampling.plan.last_step_noise: true then, nothing now",
        "use resume_with_changes=true",
    ):
        assert line in str(error.value)


def test_changes_that_do_not_matter_need_no_leave(tmp_path: Path) -> None:
    run_until(tmp_path / "a", 2)
    (tmp_path / "a").rename(tmp_path / "b")
    training = {"rollouts": 9, "max_seconds": 1e6, "checkpoint": {"every": 5, "keep": 7}}
    other = {"name": "other", "evaluation": {"every": 3, "bootstrap_samples": 300}, "tracking": {"project": "other"}}
    config = config_of(tmp_path / "b", resume="latest", training=training, **other)
    point = find_resume_point(config, {})
    assert point is not None
    assert point.changes == ()
    assert {"output_dir", "name", *(f"training.{k}" for k in ("rollouts", "max_seconds"))} <= FREE_KEYS


def test_free_keys_exist() -> None:
    def value(tree: Any, keys: Sequence[str]) -> Any:
        return value(tree[keys[0]], keys[1:]) if keys else tree

    for key in FREE_KEYS:
        value(RunConfig().model_dump(), key.split("."))


def test_changes_are_allowed_when_asked_for(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run_until(tmp_path, 3)
    changed = {"training": {"learning_rate": 0.05}, "resume": "latest", "resume_with_changes": True}
    summary = run_toy(config_of(tmp_path, **changed))
    assert "changed: training.learning_rate: 0.02 then, 0.05 now" in " ".join(capfd.readouterr().err.split())
    assert [row["learning_rate"] for row in rows_of(tmp_path)] == [0.02] * 3 + [0.05] * 3
    assert summary["evaluation_forwards"] == 2 * 10 * 4  # the scores before training still hold


def test_changed_scores_are_measured_anew_before_training(tmp_path: Path) -> None:
    """A gain compares like with like: the base is scored again, by the untrained weights."""
    run_until(tmp_path, 3)
    changed = {"evaluation": {"seeds_per_prompt": 3}, "resume": "latest", "resume_with_changes": True}
    summary = run_toy(config_of(tmp_path, **changed))
    fresh = run_toy(config_of(tmp_path.with_name("fresh"), evaluation={"seeds_per_prompt": 3}))
    assert (summary["base"], summary["tuned"]) == (fresh["base"], fresh["tuned"])
    assert summary["samples"] == 15
    assert (tmp_path / "evaluations" / "000000.json").read_bytes() == (
        tmp_path.with_name("fresh") / "evaluations" / "000000.json"
    ).read_bytes()


def test_changed_files_are_seen(tmp_path: Path) -> None:
    run_until(tmp_path, 1)
    for checkpoint in list_checkpoints(tmp_path)[:-1]:
        remove_checkpoint(checkpoint)
    path = list_checkpoints(tmp_path)[0].folder
    stored = replace(read_run_state(path), fingerprints={"prompts.heldout": "a", "prompts.train": "b"})
    text = json.dumps(stored.to_json())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("difalign.train.resume.find_damage", lambda checkpoint: None)
        (path / "run.json").write_text(text)
        with pytest.raises(ConfigError, match=r"prompts\.train: its content has changed"):
            find_resume_point(config_of(tmp_path, resume="latest"), {"prompts.heldout": "a", "prompts.train": "c"})


def test_fewer_rollouts_than_there_were_are_refused(tmp_path: Path) -> None:
    run_until(tmp_path, 4)
    with pytest.raises(
        ConfigError, match=r"training.rollouts = 3: .* has 4 behind it; use training.rollouts=4 or more"
    ):
        find_resume_point(config_of(tmp_path, resume="latest", training={"rollouts": 3}), {})


def test_refused_state_costs_nothing(tmp_path: Path) -> None:
    """Other weights than the checkpoint's are noticed before the folder is touched."""
    run_until(tmp_path, 3)
    before = file_contents(tmp_path)
    pipeline = painter()
    pipeline.network.register_parameter("more", torch.nn.Parameter(torch.zeros(2)))
    with pytest.raises(ConfigError, match="it has no 'more'"):
        run_toy(config_of(tmp_path, resume="000002"), pipeline=pipeline)
    assert file_contents(tmp_path) == before
