"""Where a run goes on: the checkpoint that is found, whether it is sound, and what has changed since it was made.

Nothing here needs torch: a run that cannot be resumed is refused before a model loads.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from difalign.core.config import RunConfig
from difalign.core.config_diff import ABSENT, differences
from difalign.core.errors import ConfigError
from difalign.report.log import FileMark, LogMark, find_mismatch
from difalign.report.records import Evaluation, evaluation_from_json, evaluation_to_json
from difalign.train.checkpoint import CHECKPOINTS_FOLDER, Checkpoint, find_damage, list_checkpoints

RUN_FILE = "run.json"
LATEST = "latest"

# Keys that may differ without a word: where things lie, when a run ends, what it keeps, and how often it looks. None
# of them changes a weight, a row of metrics or a score.
FREE_KEYS = frozenset(
    {
        "name",
        "output_dir",
        "overwrite",
        "resume",
        "resume_with_changes",
        "training.rollouts",
        "training.max_seconds",
        "training.checkpoint.every",
        "training.checkpoint.keep",
        "evaluation.every",
        "evaluation.bootstrap_samples",
        "guards.max_skipped",
        "guards.max_kl",
        "guards.heldout",
        "guards.reload",
        "tracking.trackers",
        "tracking.project",
        "tracking.online",
        "processes.silence_seconds",
        "processes.wait_seconds",
        "diagnostics.every",
        "diagnostics.prompts",
    }
)
# What the scores before training depend on: if one of these changes, they are measured anew.
_SCORED_BY = ("pipeline", "rewards", "prompts.heldout", "sampling.height", "sampling.width", "evaluation")


@dataclass(frozen=True, slots=True)
class RunState:
    """What a run, beside its trainer, needs to go on."""

    config: Mapping[str, Any]  # the whole configuration, as plain containers
    fingerprints: Mapping[str, str]  # of what the configuration names: prompts and cards
    rollouts: int
    updates: int
    seconds: float  # of the whole run
    training_seconds: float
    evaluation_forwards: int
    base: Evaluation  # before training; never repeated
    mark: LogMark
    resumed_at: tuple[int, ...]  # rollouts at which the run was resumed before
    best: Evaluation | None  # None while that is the one before training
    guards: Mapping[str, Any]  # what the guards remember, as plain containers

    def to_json(self) -> dict[str, Any]:
        """Plain containers, from which ``read_run_state`` makes the same."""
        return {
            "rollouts": self.rollouts,
            "updates": self.updates,
            "seconds": self.seconds,
            "training_seconds": self.training_seconds,
            "evaluation_forwards": self.evaluation_forwards,
            "resumed_at": list(self.resumed_at),
            "metrics": asdict(self.mark.metrics),
            "alarms": asdict(self.mark.alarms),
            "evaluations": list(self.mark.evaluations),
            "diagnostics": list(self.mark.diagnostics),
            "guards": dict(self.guards),
            "fingerprints": dict(self.fingerprints),
            "config": dict(self.config),
            "base": evaluation_to_json(self.base),
            "best": None if self.best is None else evaluation_to_json(self.best),
        }


def read_run_state(folder: Path) -> RunState:
    """The state that a checkpoint holds of its run.

    Raises:
        ValueError, KeyError, TypeError: if another version of the program wrote it.
    """
    data = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
    return RunState(
        config=data["config"],
        fingerprints=data["fingerprints"],
        rollouts=data["rollouts"],
        updates=data["updates"],
        seconds=data["seconds"],
        training_seconds=data["training_seconds"],
        evaluation_forwards=data["evaluation_forwards"],
        base=evaluation_from_json(data["base"]),
        mark=LogMark(
            FileMark(**data["metrics"]),
            FileMark(**data["alarms"]),
            tuple(data["evaluations"]),
            tuple(data.get("diagnostics", ())),  # a checkpoint made before there were any
        ),
        resumed_at=tuple(data["resumed_at"]),
        best=None if data["best"] is None else evaluation_from_json(data["best"]),
        guards=data["guards"],
    )


@dataclass(frozen=True, slots=True)
class ResumePoint:
    """A sound checkpoint that fits the run, and what there is to say about it."""

    checkpoint: Checkpoint
    updates: int  # behind it
    skipped: tuple[str, ...] = ()  # later checkpoints, each with what is wrong with it
    changes: tuple[str, ...] = ()  # of the configuration, as far as they matter
    measure_base: bool = False  # whether the changes make the scores before training incomparable


def find_resume_point(config: RunConfig, fingerprints: Mapping[str, str]) -> ResumePoint | None:
    """The checkpoint to go on from; None if the run starts anew.

    ``resume: latest`` takes the newest sound checkpoint of the run's folder and skips damaged ones; a path is taken
    as it is or not at all.

    Raises:
        ConfigError: if there is no checkpoint, none is sound, or the run was configured otherwise.
    """
    if config.resume is None:
        return None
    key = f"resume = {config.resume!r}"
    candidates = _candidates(config, key)
    skipped: list[str] = []
    for checkpoint in reversed(candidates):
        damage = _damage(checkpoint, config.run_folder)
        if damage is None:
            return _fitting(checkpoint, config, fingerprints, skipped, key)
        skipped.append(f"{checkpoint.folder}: {damage}")
    raise ConfigError("\n".join(f"{key}: {line}" for line in _all_damaged(skipped, config)))


def _all_damaged(skipped: Sequence[str], config: RunConfig) -> list[str]:
    if config.resume == LATEST:
        return [*skipped, f"no checkpoint is sound; use overwrite=true without resume to start {config.name!r} anew"]
    return [f"{skipped[0]}; use resume=latest, which skips damaged checkpoints"]


def _candidates(config: RunConfig, key: str) -> Sequence[Checkpoint]:
    """What may be resumed from, oldest first; never empty."""
    known = list_checkpoints(config.run_folder)
    folder = config.run_folder / CHECKPOINTS_FOLDER
    if not known:
        raise ConfigError(f"{key}: there is no checkpoint in {folder}; leave resume out to start a run")
    assert config.resume is not None
    if config.resume == LATEST:
        return known
    named = Path(config.resume) if Path(config.resume).exists() else folder / config.resume
    for checkpoint in known:
        if named.exists() and named.samefile(checkpoint.folder):
            return [checkpoint]
    numbers = ", ".join(checkpoint.folder.name for checkpoint in known)
    raise ConfigError(
        f"{key}: is no checkpoint of the run in {str(config.run_folder)!r}, which has {numbers}; use resume=latest, "
        "one of these, or the output_dir that the checkpoint lies in"
    )


def _damage(checkpoint: Checkpoint, run_folder: Path) -> str | None:
    """Why a checkpoint cannot be resumed from: its own files, or those of the run that it goes with."""
    damage = find_damage(checkpoint)
    if damage is not None:
        return damage
    try:
        state = read_run_state(checkpoint.folder)
    except (OSError, ValueError, KeyError, TypeError):
        return f"{RUN_FILE} was written by another version"
    return find_mismatch(run_folder, state.mark)


def _fitting(
    checkpoint: Checkpoint, config: RunConfig, fingerprints: Mapping[str, str], skipped: list[str], key: str
) -> ResumePoint:
    """The resume point, once the configuration is known to be that of the checkpoint, or allowed to differ."""
    state = read_run_state(checkpoint.folder)
    if state.rollouts > config.training.rollouts:
        raise ConfigError(
            f"training.rollouts = {config.training.rollouts}: {checkpoint.folder} has {state.rollouts} behind it; "
            f"use training.rollouts={state.rollouts} or more"
        )
    changes = {**_changed_keys(state.config, config), **_changed_contents(state.fingerprints, fingerprints)}
    if changes and not config.resume_with_changes:
        lines = [f"{key}: the run was started with another configuration; it is resumed as it began"]
        lines += [f"  {line}" for line in changes.values()]
        raise ConfigError("\n".join([*lines, "  use resume_with_changes=true to go on with these changes"]))
    return ResumePoint(
        checkpoint,
        updates=state.updates,
        skipped=tuple(skipped),
        changes=tuple(changes.values()),
        measure_base=any(_scores(name) for name in changes),
    )


def _scores(name: str) -> bool:
    return any(name == part or name.startswith(f"{part}.") for part in _SCORED_BY) and name != "evaluation.micro_batch"


def _changed_keys(stored: Mapping[str, Any], config: RunConfig) -> dict[str, str]:
    """Key -> what changed, for every key that matters."""
    found = differences(_with_defaults(stored), config.model_dump(mode="json"))
    return {
        each.key: f"{each.key}: {_shown(each.first)} then, {_shown(each.second)} now"
        for each in found
        if each.key not in FREE_KEYS
    }


def _changed_contents(stored: Mapping[str, str], current: Mapping[str, str]) -> dict[str, str]:
    return {
        name: f"{name}: its content has changed" for name in current if name in stored and stored[name] != current[name]
    }


def _with_defaults(stored: Mapping[str, Any]) -> Mapping[str, Any]:
    """A stored configuration with the keys that have come since, at their defaults."""
    try:
        return RunConfig.model_validate(dict(stored)).model_dump(mode="json")
    except ValidationError:
        return stored  # it has keys that are gone, which then stand among the differences


def _shown(value: object) -> str:
    return "nothing" if value is ABSENT else json.dumps(value, ensure_ascii=False)
