"""Progress for people: nested bars on a terminal, plain lines elsewhere, silence on all but the main process."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Protocol, Self, final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

_LINE_SECONDS = 10.0  # between two plain lines
_FILE_WIDTH = 110  # columns of a table that goes to no terminal


class ProgressView(Protocol):
    """How a run shows where it is."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def run(self, done: int, total: int, text: str) -> None:
        """The outer bar: rollouts done, and the latest figures."""
        ...

    def phase(self, name: str, done: int, total: int) -> None:
        """The inner bar: sampling, scoring, training or evaluating."""
        ...

    def note(self, text: str) -> None:
        """A line that stays."""
        ...

    def show(self, table: Table) -> None:
        """A table that stays."""
        ...


def progress_view(*, is_main: bool, unit: str = "rollout", phases: bool = False) -> ProgressView:
    """The view that fits: bars if standard error is a terminal, lines if not, nothing off the main process.

    Args:
        is_main: whether this process speaks.
        unit: what the outer bar counts, one of them.
        phases: whether phases make lines as well, for runs whose outer bar seldom moves.
    """
    console = Console(stderr=True)
    if not is_main:
        return _Silent()
    if console.is_terminal:
        return _Bars(console, unit)
    return _Lines(Console(stderr=True, width=_FILE_WIDTH), unit, phases=phases)


@final
class _Silent:
    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def run(self, done: int, total: int, text: str) -> None:
        return None

    def phase(self, name: str, done: int, total: int) -> None:
        return None

    def note(self, text: str) -> None:
        return None

    def show(self, table: Table) -> None:
        return None


@final
class _Lines:
    def __init__(self, console: Console, unit: str, *, phases: bool) -> None:
        self._console = console
        self._unit = unit
        self._phases = phases
        self._last = -_LINE_SECONDS

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def run(self, done: int, total: int, text: str) -> None:
        now = time.monotonic()
        if now - self._last >= _LINE_SECONDS or done == total:
            self._last = now
            _print_as_it_is(self._console, f"{self._unit} {done}/{total}  {text}")

    def phase(self, name: str, done: int, total: int) -> None:
        now = time.monotonic()
        if self._phases and now - self._last >= _LINE_SECONDS:
            self._last = now
            _print_as_it_is(self._console, f"{name} {done}/{total}")

    def note(self, text: str) -> None:
        _print_as_it_is(self._console, text)

    def show(self, table: Table) -> None:
        self._console.print(table)


@final
class _Bars:
    def __init__(self, console: Console, unit: str) -> None:
        columns = (
            TextColumn("{task.description:<10}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}", markup=False),
        )
        self._progress = Progress(*columns, console=console)
        self._run = self._progress.add_task(f"{unit}s", total=None, text="")
        self._phase = self._progress.add_task("", total=None, text="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def run(self, done: int, total: int, text: str) -> None:
        self._progress.update(self._run, completed=done, total=total, text=text)

    def phase(self, name: str, done: int, total: int) -> None:
        self._progress.update(self._phase, description=name, completed=done, total=total)

    def note(self, text: str) -> None:
        _print_as_it_is(self._progress.console, text)

    def show(self, table: Table) -> None:
        self._progress.console.print(table)


def _print_as_it_is(console: Console, text: str) -> None:
    """One line; a name in square brackets or between colons is no markup."""
    console.print(Text(text), soft_wrap=True)
