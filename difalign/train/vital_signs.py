"""Who is still there: each process tells the others that it lives and what it does, and no one waits for the dead.

A process that is killed, or whose machine is gone, leaves the others in an exchange that may never end. So every
process writes a sign of life into a store that all can reach, and a thread reads those of the others. Whoever is silent
for too long is named with the stage it was last in, and the process that notices ends. Nothing is saved at that moment:
what lies on the disk is the last checkpoint, whole.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, final

from difalign.core.errors import ProcessLost
from difalign.train.runtime import Runtime, Store, is_broken_exchange

BEAT_SECONDS = 1.0  # between two signs of life
FAILED = 1  # exit code of a process that ends because another has

_MISSED = 5  # signs that a process may miss once an exchange has failed, before it is taken to be the reason
_GRACE_SECONDS = 10.0  # for a process to come to its own end after another has said that it ended
_LONGEST_REASON = 300  # characters


@dataclass(slots=True)
class _Other:
    """What is known of another process."""

    sign: int = -1
    heard: float = 0.0  # when a new sign was first seen, by the own clock
    stage: str = "starting"
    reason: str | None = None  # why it ended, if it said so
    ended: float = 0.0  # when that was first seen


@final
class VitalSigns:
    """Inside, this process gives signs of life and listens for those of the others; nothing for one process alone.

    Args:
        runtime: this process.
        silence: seconds without a sign after which a process is taken for dead.
        beat: seconds between two signs.
        say: tells the user, on every process that is left.
        leave: ends this process at once; its main thread may be in an exchange that nothing interrupts.
    """

    def __init__(
        self,
        runtime: Runtime,
        *,
        silence: float,
        beat: float = BEAT_SECONDS,
        say: Callable[[str], object] | None = None,
        leave: Callable[[int], Any] = os._exit,
    ) -> None:
        self._runtime = runtime
        self._silence = silence
        self._beat = min(beat, silence / 4)
        self._say = _to_stderr if say is None else say
        self._leave = leave
        self._store: Store | None = None
        self._others: dict[int, _Other] = {}
        self._signs = 0
        self._stage = "starting"
        self._gone = 0.0  # when the store was first found to be gone
        self._writing = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="vital signs", daemon=True)

    def __enter__(self) -> Self:
        if self._runtime.world > 1:
            self._store = self._runtime.open_store(self._silence)
            self._write()
            self._runtime.gather([None])  # every process has given its first sign
            now = time.monotonic()
            ranks = set(range(self._runtime.world)) - {self._runtime.rank}
            self._others = {rank: _Other(heard=now) for rank in sorted(ranks)}
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._store is None:
            return
        self._over.set()
        self._thread.join()
        if error is None:
            return
        if is_broken_exchange(error):
            with _terminated_later():
                found = self._culprit()
            if found is not None:
                self._write(reason=f"it waited for another: {found}")
                raise ProcessLost(found) from error
        first_line = (str(error).splitlines() or [""])[0]
        self._write(reason=f"{type(error).__name__}: {first_line}"[:_LONGEST_REASON])

    def stage(self, name: str) -> None:
        """Say what this process does from now on."""
        if name != self._stage:
            self._stage = name
            if self._store is not None:
                self._write()

    # --- the own signs ------------------------------------------------------------------------------------------

    def _write(self, *, reason: str | None = None) -> None:
        assert self._store is not None
        with self._writing:
            self._signs += 1
            sign = {"sign": self._signs, "stage": self._stage, "reason": reason}
            try:
                self._store.set(str(self._runtime.rank), json.dumps(sign))
            except RuntimeError:
                self._note_lost_store()

    # --- those of the others ------------------------------------------------------------------------------------

    def _listen(self) -> None:
        while not self._over.wait(self._beat):
            self._write()
            self._look()
            found = self._dead(self._silence, _GRACE_SECONDS)
            if found is not None and not self._over.is_set():
                self._say(found)
                self._leave(FAILED)

    def _look(self) -> None:
        """Read what the others have written."""
        assert self._store is not None
        now = time.monotonic()
        for rank, other in self._others.items():
            try:
                sign = json.loads(self._store.get(str(rank)))
            except RuntimeError:
                self._note_lost_store()
                return
            if sign["sign"] != other.sign:
                other.sign, other.heard, other.stage = sign["sign"], now, sign["stage"]
                if sign["reason"] is not None:
                    other.reason, other.ended = sign["reason"], now

    def _note_lost_store(self) -> None:
        self._gone = self._gone or time.monotonic()

    def _culprit(self) -> str | None:
        """Who is behind an exchange that failed; waits until it shows."""
        patience = min(self._silence, _MISSED * self._beat)
        last = time.monotonic() + patience + 2 * self._beat
        while time.monotonic() < last:
            self._look()
            if found := self._dead(patience, 0.0):
                return found
            time.sleep(self._beat / 4)
        return None

    def _dead(self, silence: float, grace: float) -> str | None:
        """A process that is gone, in words; one that said why comes before one that is silent."""
        now = time.monotonic()
        for rank, other in self._others.items():
            if other.reason is not None and now - other.ended >= min(grace, silence):
                return self._words(rank, other, f"ended: {other.reason}")
        for rank, other in self._others.items():
            if now - other.heard >= silence and not self._gone:
                return self._words(rank, other, f"has given no sign of life for {now - other.heard:.0f} seconds")
        if self._gone and now - self._gone >= min(grace, silence):
            main = self._others.get(0)
            if main is not None and main.reason is None:
                return self._words(0, main, "is gone")
        return None

    def _words(self, rank: int, other: _Other, what: str) -> str:
        world, mine = self._runtime.world, self._runtime.rank
        return (
            f"process {rank} of {world} {what}; it was {other.stage}. Process {mine} stops, in {self._stage}; the last "
            "checkpoint is untouched: start the run again with resume=latest"
        )


@contextmanager
def _terminated_later() -> Iterator[None]:
    """Inside, SIGTERM does nothing: a launcher that sees a dead process ends the others before they can say why."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN) or signal.SIG_DFL
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _to_stderr(text: str) -> None:
    sys.stderr.write(f"error: {text}\n")
    sys.stderr.flush()
