"""The alarms of a run: each is shown and written once, by the main process, and counted on all."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import final

from difalign.report.alarms import Alarm, count_alarms


@final
class Alarms:
    """Takes alarms; what every process decides alike is given to every process's own.

    Args:
        write: appends an alarm to the run's folder; nothing off the main process.
        show: shows one line.
    """

    def __init__(
        self, *, write: Callable[[Alarm], object] | None = None, show: Callable[[str], object] | None = None
    ) -> None:
        self._write = write
        self._show = show
        self._given: list[Alarm] = []

    @property
    def given(self) -> tuple[Alarm, ...]:
        """All alarms so far, those before a resume among them."""
        return tuple(self._given)

    @property
    def counts(self) -> dict[str, int]:
        """How many there were of each name."""
        return count_alarms(self._given)

    def give(self, alarm: Alarm) -> None:
        """Show an alarm and write it down."""
        self._given.append(alarm)
        if self._write is not None:
            self._write(alarm)
        if self._show is not None:
            self._show(f"alarm: {alarm.line}")

    def restore(self, given: Iterable[Alarm]) -> None:
        """Go on from alarms that have been shown and written before."""
        self._given = list(given)
