"""Where a run stands, read from its folder while it goes on, after it ended, or after it broke off."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from difalign.core.config_yaml import parse_yaml
from difalign.core.errors import ConfigError
from difalign.report.alarms import count_alarms
from difalign.report.records import Evaluation
from difalign.report.run_folder import Run, read_run
from difalign.report.words import finite

State = Literal["finished", "running", "silent"]

_RECENT = 20  # rollouts that the present speed is measured over
_LAST_ALARMS = 3  # shown in full
_QUIET_ROLLOUTS = 5.0  # a run that wrote nothing for as long as this many rollouts take ...
_QUIET_SECONDS = 120.0  # ... and for longer than this may have stopped; an evaluation takes a while as well


@dataclass(frozen=True, slots=True)
class Score:
    """One evaluation in two numbers."""

    rollout: int
    label: str
    score: float | None  # mean of the total; None without samples
    samples: int


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast training went lately; None where nothing can be said yet."""

    seconds_a_rollout: float | None = None
    samples_a_second: float | None = None
    forwards_a_second: float | None = None


@dataclass(frozen=True, slots=True)
class RunStatus:
    """Progress, speed and the last figures of a run; what the folder does not say is None."""

    folder: Path
    name: str
    state: State
    rollouts: int  # done
    planned_rollouts: int | None
    updates: int
    seconds: float | None  # of training so far
    silent_seconds: float  # since something was last written
    speed: Speed
    remaining_seconds: float | None  # of training: by rollouts or by the clock, whichever ends first
    figures: Mapping[str, Any]  # of the last update
    evaluations: tuple[Score, ...]
    summary: Mapping[str, Any]  # empty until the run has ended
    alarms: tuple[str, ...]  # one line a name with its count, then the last ones in full
    problems: tuple[str, ...]  # what could not be read


def run_status(folder: Path, *, now: float) -> RunStatus:
    """The status of the run in ``folder``; lines that cannot be read are left out and named.

    Args:
        folder: a run's folder.
        now: seconds since the epoch, as ``time.time()`` gives them.

    Raises:
        ValueError: if the folder does not exist or holds nothing that a run writes.
    """
    run = read_run(folder)
    config = _config(run)
    training = _mapping(config.get("training"))
    ends = _ends_of_rollouts(run)
    speed = _speed(ends)
    planned = training.get("rollouts")
    planned = planned if isinstance(planned, int) else None
    seconds = finite(ends[-1].get("seconds")) if ends else None
    silent = max(now - _last_written(run.folder), 0.0)
    done = ends[-1]["rollout"] + 1 if ends else 0
    return RunStatus(
        folder=run.folder,
        name=str(config.get("name", run.folder.name)),
        state=_state(run, silent, speed),
        rollouts=done,
        planned_rollouts=planned,
        updates=len(run.metrics),
        seconds=seconds,
        silent_seconds=silent,
        speed=speed,
        remaining_seconds=_remaining(done, planned, speed, seconds, finite(training.get("max_seconds")))
        if run.summary is None
        else None,
        figures=dict(run.metrics[-1]) if run.metrics else {},
        evaluations=tuple(_score(stored.evaluation) for stored in run.evaluations),
        summary=run.summary or {},
        alarms=_alarms(run),
        problems=run.problems,
    )


def _config(run: Run) -> Mapping[str, Any]:
    """The configuration as it was written; one of another version is read as far as it goes."""
    if run.config is None:
        return {}
    try:
        return _mapping(parse_yaml(run.config, name="config.yaml"))
    except ConfigError:
        return {}


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _ends_of_rollouts(run: Run) -> list[Mapping[str, Any]]:
    """The last row of every rollout: its totals count what was done up to there."""
    ends = {row["rollout"]: row for row in run.metrics if isinstance(row.get("rollout"), int)}
    return [ends[rollout] for rollout in sorted(ends)]


def _speed(ends: list[Mapping[str, Any]]) -> Speed:
    """From the totals of the last rollouts; the first one is measured from the start of training."""
    if not ends:
        return Speed()
    begin = ends[-_RECENT - 1] if len(ends) > _RECENT else {"rollout": -1, "seconds": 0.0}
    spent = _difference(ends[-1], begin, "seconds")
    if spent is None or spent <= 0:
        return Speed()
    rates = [_difference(ends[-1], begin, name) for name in ("reward_calls", "denoiser_forwards")]
    samples, forwards = (None if total is None else total / spent for total in rates)
    return Speed(spent / (ends[-1]["rollout"] - begin["rollout"]), samples, forwards)


def _difference(end: Mapping[str, Any], begin: Mapping[str, Any], name: str) -> float | None:
    last, first = finite(end.get(name)), finite(begin.get(name, 0.0))
    return None if last is None or first is None else last - first


def _last_written(folder: Path) -> float:
    return max((path.stat().st_mtime for path in folder.iterdir() if path.is_file()), default=folder.stat().st_mtime)


def _state(run: Run, silent: float, speed: Speed) -> State:
    if run.summary is not None:
        return "finished"
    patience = max(_QUIET_SECONDS, _QUIET_ROLLOUTS * (speed.seconds_a_rollout or 0.0))
    return "silent" if silent > patience else "running"


def _remaining(
    done: int, planned: int | None, speed: Speed, seconds: float | None, limit: float | None
) -> float | None:
    if speed.seconds_a_rollout is None:
        return None
    ends = []
    if planned is not None:
        ends.append((planned - done) * speed.seconds_a_rollout)
    if limit is not None and seconds is not None:
        ends.append(limit - seconds)
    return max(min(ends), 0.0) if ends else None


def _score(evaluation: Evaluation) -> Score:
    totals = [value for record in evaluation.records if (value := finite(record.scores.get("total"))) is not None]
    mean = sum(totals) / len(totals) if totals else None
    return Score(evaluation.rollout, evaluation.label, mean, len(evaluation.records))


def _alarms(run: Run) -> tuple[str, ...]:
    """How often each alarm was given, and the last ones in full."""
    counts = [f"{name}: {count}" for name, count in count_alarms(run.alarms).items()]
    return (*counts, *(alarm.line for alarm in run.alarms[-_LAST_ALARMS:]))
