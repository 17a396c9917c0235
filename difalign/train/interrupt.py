"""Ctrl-C and the signals of a scheduler: the first lets the rollout come to its end, the second does not."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self, final

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@final
class Interrupted(Exception):
    """A run that was asked to stop, has saved its state and stopped."""

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.signum = signum

    @property
    def exit_code(self) -> int:
        """128 + the signal's number, as a shell reports a process that a signal has ended."""
        return 128 + self.signum


@final
class SignalWatch:
    """Inside, the first SIGINT or SIGTERM is noted and the second ends the process at once.

    Python handles signals in its main thread only; elsewhere nothing is watched.

    Args:
        say: tells the user, called from within the signal handler.
        grace: seconds in which further signals count as the first. A launcher of several processes passes on what
            the terminal has already sent to all of them.
    """

    def __init__(self, say: Callable[[str], None], *, grace: float = 0.0) -> None:
        self._say = say
        self._grace = grace
        self._before: dict[signal.Signals, Any] = {}
        self._since = 0.0
        self.received = 0  # the number of the first signal

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) or signal.SIG_DFL for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        if not self.received:
            self.received, self._since = number, time.monotonic()
            if not self._grace:  # the system's own handling does not wait for the interpreter's next instruction
                for each in self._before:
                    signal.signal(each, signal.SIG_DFL)
            name = signal.Signals(number).name
            self._say(f"{name}: stopping after this rollout, with a checkpoint; once more to stop at once")
        elif time.monotonic() - self._since >= self._grace:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
