"""The reader of a run folder: whatever is there, with a note about whatever could not be read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from difalign.report.alarms import Alarm, alarm_from_json
from difalign.report.diagnostics import Diagnostics, diagnostics_from_json
from difalign.report.log import (
    ALARMS_FILE,
    CONFIG_FILE,
    DIAGNOSTICS_FOLDER,
    ENVIRONMENT_FILE,
    EVALUATIONS_FOLDER,
    METRICS_FILE,
    SUMMARY_FILE,
)
from difalign.report.records import Evaluation, evaluation_from_json

MetricsRow = Mapping[str, Any]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class StoredEvaluation:
    """An evaluation and the grid beside it, if there is one."""

    evaluation: Evaluation
    grid: Path | None


@dataclass(frozen=True, slots=True)
class StoredDiagnostics:
    """The diagnostics of one rollout and the pictures beside them, if there are any."""

    diagnostics: Diagnostics
    pictures: Path | None


@dataclass(frozen=True, slots=True)
class Run:
    """A run folder in memory. Anything may be missing: a run may be going on, or have crashed."""

    folder: Path
    metrics: tuple[MetricsRow, ...]  # in order of rollout and update
    evaluations: tuple[StoredEvaluation, ...]  # in order of rollout
    summary: Mapping[str, Any] | None  # None until the run has come to its end
    config: str | None  # YAML text
    environment: Mapping[str, Any]
    problems: tuple[str, ...]  # what could not be read, one sentence each
    alarms: tuple[Alarm, ...] = ()  # in order of appearance
    diagnostics: tuple[StoredDiagnostics, ...] = ()  # in order of rollout

    @property
    def base(self) -> StoredEvaluation | None:
        """The evaluation before training: labelled "base", or else the first of several."""
        for stored in self.evaluations:
            if stored.evaluation.label == "base":
                return stored
        return self.evaluations[0] if len(self.evaluations) > 1 else None

    @property
    def latest(self) -> StoredEvaluation | None:
        """The last evaluation labelled "tuned", or else the last one that is not the base."""
        others = [stored for stored in self.evaluations if stored is not self.base]
        tuned = [stored for stored in others if stored.evaluation.label == "tuned"]
        return (tuned or others or [None])[-1]


def read_run(folder: Path) -> Run:
    """Read a run folder, finished or not.

    Raises:
        ValueError: if the folder does not exist or holds nothing that a run writes.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; give the folder of a run, such as runs/demo")
    problems: list[str] = []
    metrics = merge_rows(_read_lines(folder / METRICS_FILE, _row, problems))
    alarms = _read_lines(folder / ALARMS_FILE, _alarm, problems)
    evaluations = [
        StoredEvaluation(evaluation, picture)
        for evaluation, picture in _read_numbered(folder / EVALUATIONS_FOLDER, evaluation_from_json, problems)
    ]
    diagnostics = [
        StoredDiagnostics(seen, picture)
        for seen, picture in _read_numbered(folder / DIAGNOSTICS_FOLDER, diagnostics_from_json, problems)
    ]
    summary = _read_mapping(folder / SUMMARY_FILE, problems)
    environment = _read_mapping(folder / ENVIRONMENT_FILE, problems)
    config = folder / CONFIG_FILE
    run = Run(
        folder=folder,
        metrics=metrics,
        evaluations=tuple(sorted(evaluations, key=lambda item: item.evaluation.rollout)),
        summary=summary,
        config=config.read_text(encoding="utf-8", errors="replace") if config.is_file() else None,
        environment=environment or {},
        problems=tuple(problems),
        alarms=tuple(alarms),
        diagnostics=tuple(sorted(diagnostics, key=lambda item: item.diagnostics.rollout)),
    )
    if not (metrics or evaluations or diagnostics or summary or run.config or environment or problems):
        raise ValueError(f"{folder} holds nothing that a run writes, such as {METRICS_FILE}; give the folder of a run")
    return run


def merge_rows(rows: Iterable[MetricsRow]) -> tuple[MetricsRow, ...]:
    """Rows in order of (rollout, update); a later row with the same pair overwrites an earlier one key by key.

    A resumed run repeats the rollouts since its checkpoint, and what it repeats is what counts.
    """
    merged: dict[tuple[int, int], dict[str, Any]] = {}
    for row in rows:
        key = (_order(row.get("rollout")), _order(row.get("update")))
        merged.setdefault(key, {}).update(row)
    return tuple(merged[key] for key in sorted(merged))


def _order(value: object) -> int:
    return value if isinstance(value, int) else -1


def _row(data: object) -> MetricsRow | None:
    return data if isinstance(data, Mapping) else None


def _alarm(data: object) -> Alarm | None:
    try:
        return alarm_from_json(data) if isinstance(data, Mapping) else None
    except ValueError:
        return None


def _read_lines(path: Path, read: Callable[[object], T | None], problems: list[str]) -> list[T]:
    """What ``read`` makes of each line's JSON; lines of which it makes nothing are left out and named."""
    if not path.is_file():
        return []
    rows: list[T] = []
    broken: list[str] = []
    for position, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        if not line.strip():
            continue
        row = read(_parse(line))
        if row is not None:
            rows.append(row)
        else:
            broken.append(str(position))
    if broken:
        shown = ", ".join(broken[:5]) + (", …" if len(broken) > 5 else "")
        lines = "line" if len(broken) == 1 else "lines"
        problems.append(f"Left out of {path.name}: {lines} {shown}, which could not be read.")
    return rows


def _read_numbered(
    folder: Path, read: Callable[[Mapping[str, Any]], T], problems: list[str]
) -> list[tuple[T, Path | None]]:
    """What ``read`` makes of each JSON file of a folder, and the picture beside it; files of no use are named."""
    found: list[tuple[T, Path | None]] = []
    for path in sorted(folder.glob("*.json")):
        data = _parse(path.read_text(encoding="utf-8", errors="replace"))
        try:
            content = read(data if isinstance(data, Mapping) else {})
        except ValueError as error:
            problems.append(f"{folder.name}/{path.name} could not be read: {error}.")
            continue
        picture = path.with_suffix(".png")
        found.append((content, picture if picture.is_file() else None))
    return found


def _read_mapping(path: Path, problems: list[str]) -> Mapping[str, Any] | None:
    if not path.is_file():
        return None
    data = _parse(path.read_text(encoding="utf-8", errors="replace"))
    if isinstance(data, Mapping):
        return data
    problems.append(f"{path.name} could not be read: it is not a JSON object.")
    return None


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None
