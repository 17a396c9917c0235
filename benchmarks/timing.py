"""Timing of sides that take turns in one process, so that a busy machine disturbs all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import final

Clock = Callable[[], float]  # seconds


def alternate(
    sides: Mapping[str, Callable[[], object]], *, rounds: int, clock: Clock = time.process_time
) -> dict[str, list[float]]:
    """Seconds of every side in every round; within a round each side runs once, in the order given.

    The default clock counts the processor's seconds of this process: what other processes take does not count. They
    still slow memory and caches, so compare the fastest rounds.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, run in sides.items():
            begin = clock()
            run()
            seconds[name].append(clock() - begin)
    return seconds


def fastest(seconds: Mapping[str, list[float]]) -> dict[str, float]:
    """The fastest round of every side."""
    return {name: min(values) for name, values in seconds.items()}


@final
class PhaseClock:
    """Splits one run into named phases, in processor seconds."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.process_time()

    def mark(self, phase: str) -> None:
        """Count the time since the last mark to ``phase``."""
        now = time.process_time()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._last
        self._last = now

    @property
    def total(self) -> float:
        """Seconds of all phases."""
        return sum(self.seconds.values())
