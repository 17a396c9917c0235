"""Runs that go on: from where, as what, and when not."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from difalign.core.config import RunConfig
from difalign.core.errors import ConfigError
from difalign.core.types import RewardOutput
from difalign.report.run_folder import read_run
from difalign.train.checkpoint import list_checkpoints, remove_checkpoint
from difalign.train.interrupt import Interrupted
from difalign.train.policy_gradient import PolicyGradient
from difalign.train.resume import FREE_KEYS, find_resume_point, read_run_state
from difalign.train.runtime import Runtime
from difalign.train.state import read_trainer_state
from tests.train.small_runs import (
    WEIGHTS,
    Brightness,
    painter,
    rows_of,
    run_toy,
    toy_run_config,
    without_clocks,
)
from tests.train.toy_run import quiet, toy_config, toy_trainer, weights

EMA = {"enabled": True, "every": 1, "max_decay": 0.5}


class Stopped(Exception):
    """The end of a run that a test has cut short."""


def stop_after(patch: pytest.MonkeyPatch, rollouts: int) -> None:
    """Let no rollout begin but the first few."""
    run = PolicyGradient.run

    def limited(self: PolicyGradient, index: int, report: Any) -> list[dict[str, float]]:
        if index >= rollouts:
            raise Stopped
        return run(self, index, report)

    patch.setattr(PolicyGradient, "run", limited)


def config_of(folder: Path, **sections: Any) -> RunConfig:
    """Six rollouts with an average, a checkpoint after each."""
    training = {"rollouts": 6, "ema": EMA, "checkpoint": {"every": 1, "keep": 2}, **sections.pop("training", {})}
    return toy_run_config(folder, training=training, **sections)


def run_until(folder: Path, rollouts: int, **sections: Any) -> None:
    """The beginning of a run."""
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, rollouts)
        with pytest.raises(Stopped):
            run_toy(config_of(folder, **sections))


def assert_same_end(folder: Path, expected: Path) -> None:
    assert [without_clocks(row) for row in rows_of(folder)] == [without_clocks(row) for row in rows_of(expected)]
    assert (folder / WEIGHTS).read_bytes() == (expected / WEIGHTS).read_bytes()
    names = sorted(path.name for path in (expected / "evaluations").iterdir())
    assert sorted(path.name for path in (folder / "evaluations").iterdir()) == names
    for name in names:
        assert (folder / "evaluations" / name).read_bytes() == (expected / "evaluations" / name).read_bytes()


# --- the trainer -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ema", [{"enabled": False}, {"enabled": True, "every": 3, "max_decay": 0.9}], ids=["own", "ema"]
)
def test_restored_trainer_goes_on_as_the_one_it_was_taken_from(tmp_path: Path, ema: dict[str, Any]) -> None:
    config = toy_config(training={"ema": ema, "updates_per_rollout": 2})
    straight, pipeline = toy_trainer(config)
    for index in range(2):
        straight.run(index, quiet)
    for name, write in straight.state().files().items():
        write(tmp_path / name)
    expected = [straight.run(index, quiet) for index in (2, 3)]

    again, other = toy_trainer(config)
    again.restore(read_trainer_state(tmp_path))
    assert [again.run(index, quiet) for index in (2, 3)] == expected
    assert torch.equal(weights(other), weights(pipeline))
    if straight.average is not None:
        assert again.average is not None
        assert again.average.steps == straight.average.steps == 8
        assert all(map(torch.equal, again.average.values, straight.average.values))


def test_every_part_of_the_state_matters(tmp_path: Path) -> None:
    """Whatever is left out, the run goes another way: so the test above sees each part."""
    config = toy_config(training={"ema": EMA, "updates_per_rollout": 2})
    trainer, _ = toy_trainer(config)
    trainer.run(0, quiet)
    for name, write in trainer.state().files().items():
        write(tmp_path / name)
    state = read_trainer_state(tmp_path)

    def end(changed: Any) -> tuple[Tensor, Tensor]:
        again, pipeline = toy_trainer(config)
        again.restore(changed)
        again.run(1, quiet)
        assert again.average is not None
        return weights(pipeline), torch.cat([value.reshape(-1) for value in again.average.values])

    def differs(changed: Any) -> bool:
        return not all(map(torch.equal, end(changed), expected))

    expected = end(state)
    fresh = toy_trainer(config)[0].state()
    steps = {
        name: torch.ones_like(value) if name.endswith("step") else value for name, value in state.optimizer.items()
    }
    assert not differs(state)
    assert differs(replace(state, weights=fresh.weights))
    assert differs(replace(state, optimizer={}))
    assert differs(replace(state, optimizer=steps))
    assert differs(replace(state, average=fresh.average))
    assert differs(replace(state, counters={**state.counters, "updates": 0}))
    assert differs(replace(state, counters={**state.counters, "average_steps": 0}))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensors: {name: tensors[name] for name in list(tensors)[1:]}, "it has no"),
        (lambda tensors: {**tensors, "more": torch.ones(1)}, "nothing is called 'more'"),
        (
            lambda tensors: {name: value[..., None] for name, value in tensors.items()},
            r"is \[.*\] there and \[.*\] here",
        ),
    ],
    ids=["missing", "left over", "shape"],
)
def test_state_of_another_network_is_refused(
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]], said: str
) -> None:
    trainer, pipeline = toy_trainer(toy_config())
    before = weights(pipeline).clone()
    state = trainer.state()
    with pytest.raises(ConfigError, match=said):
        trainer.restore(replace(state, weights=change(dict(state.weights))))
    assert torch.equal(weights(pipeline), before)


def test_loss_scaling_is_part_of_the_state() -> None:
    runtime = Runtime()
    assert runtime.loss_scaling == {}
    runtime._accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**7)
    state = runtime.loss_scaling
    runtime._accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    runtime.loss_scaling = state
    assert runtime._accelerator.scaler.get_scale() == 2.0**7
    assert json.loads(json.dumps(state)) == state


# --- the run -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    run_toy(config_of(folder, evaluation={"every": 2}))
    return folder


@pytest.mark.parametrize("rollouts", [0, 1, 2, 5])
def test_resumed_run_ends_as_the_undisturbed_one(tmp_path: Path, undisturbed: Path, rollouts: int) -> None:
    run_until(tmp_path, rollouts, evaluation={"every": 2})
    summary = run_toy(config_of(tmp_path, evaluation={"every": 2}, resume="latest"))
    assert_same_end(tmp_path, undisturbed)
    expected = json.loads((undisturbed / "summary.json").read_text())
    assert without_clocks(summary) == {**without_clocks(expected), "resumed_at": [rollouts]}


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
    assert sum(pipeline.batches) == 3 * 2 * 4 * 4 + trained + 10 * 4  # three rollouts and one evaluation
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


# --- what is refused or skipped ----------------------------------------------------------------------------------


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
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    pipeline = painter()
    pipeline.network.register_parameter("more", torch.nn.Parameter(torch.zeros(2)))
    with pytest.raises(ConfigError, match="it has no 'more'"):
        run_toy(config_of(tmp_path, resume="000002"), pipeline=pipeline)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


# --- signals -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Signalled(Brightness):
    """Sends a signal to its own process while it scores for the n-th time."""

    at: int = 3
    signum: signal.Signals = signal.SIGTERM
    calls: list[str] = field(default_factory=list)

    def score(self, media: Tensor, prompts: Sequence[str], *, sigma: float | None = None) -> RewardOutput:
        self.calls.append("score")
        if len(self.calls) == self.at:
            os.kill(os.getpid(), self.signum)
        return super().score(media, prompts, sigma=sigma)


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
