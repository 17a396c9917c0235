"""The JSON lines of the curves: one an evaluation, appended as it happens.

A run that was stopped leaves its lines behind; they lack a final one and are passed over by whoever reads.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_DIGITS = 6  # significant ones


@dataclass(frozen=True, slots=True)
class Run:
    """The evaluations of one run, in order."""

    method: str
    seed: int
    settings: str
    rows: tuple[Mapping[str, Any], ...]

    @property
    def complete(self) -> bool:
        """Whether it was trained to the end of its budget."""
        return bool(self.rows[-1]["final"])

    @property
    def budget(self) -> float:
        """Seconds of training that it was given."""
        return float(self.rows[0]["run"]["budget"])

    def column(self, name: str) -> list[float]:
        """One figure at every evaluation."""
        return [float(row[name]) for row in self.rows]


def append(file: Path, row: Mapping[str, Any]) -> None:
    """Add a line; whole lines of several processes do not mix."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(_rounded(row)) + "\n")


def read_lines(file: Path) -> list[dict[str, Any]]:
    """All lines of a file, none if it does not exist."""
    if not file.is_file():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]


def runs_of(lines: Sequence[Mapping[str, Any]]) -> list[Run]:
    """The lines sorted into runs, in the order in which these began."""
    parts: dict[tuple[str, int, str, str], list[Mapping[str, Any]]] = {}
    for line in lines:
        parts.setdefault((line["method"], line["seed"], line["settings"], line["started"]), []).append(line)
    return [Run(method, seed, settings, tuple(rows)) for (method, seed, settings, _), rows in parts.items()]


def newest_complete(runs: Sequence[Run]) -> dict[str, dict[int, Run]]:
    """Method -> seed -> its last run that came to its end."""
    found: dict[str, dict[int, Run]] = {}
    for run in runs:
        if run.complete:
            found.setdefault(run.method, {})[run.seed] = run
    return found


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _rounded(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(inner) for inner in value]
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{value} is no figure to write down; the run has gone wrong")
        return float(f"{value:.{_DIGITS}g}")
    return value
