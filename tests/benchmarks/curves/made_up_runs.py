"""Runs of the curves that never took place, as lines of a results file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def lines_of(
    method: str,
    seed: int,
    heldout: Sequence[float],
    *,
    step: float = 10.0,
    settings: str = "s",
    started: str = "t0",
    complete: bool = True,
    clock: str = "seconds",
) -> list[dict[str, Any]]:
    """A run that was scored every ``step`` seconds; other counts go with the seconds."""
    lines: list[dict[str, Any]] = []
    for point, score in enumerate(heldout):
        seconds = point * step
        lines.append(
            {
                "method": method,
                "seed": seed,
                "point": point,
                "final": complete and point == len(heldout) - 1,
                "settings": settings,
                "started": started,
                "update": point * 4,
                "forwards": point * 1000,
                "reward_calls": point * 50,
                "seconds": seconds,
                "cpu_seconds": 0.9 * seconds,
                "heldout": score,
                "heldout_strict": score / 2,
                "diversity": 0.1,
            }
        )
    lines[0]["run"] = {"budget": (len(heldout) - 1) * step, "clock": clock}
    return lines
