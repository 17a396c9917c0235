"""Which of several reward servers to ask next, and which to leave alone for a while."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

LONGEST_PAUSE = 30.0  # seconds


@dataclass(slots=True)
class _Server:
    url: str
    asked: int = 0  # requests under way
    failures: int = 0  # in a row
    rests_until: float = 0.0


@dataclass(frozen=True, slots=True)
class Choice:
    """A server and how long to wait before it is asked."""

    url: str
    wait: float  # seconds


@final
class ServerPool:
    """The least busy server that is not resting; one that fails ``patience`` times in a row rests.

    After ``rest`` seconds a single request tries it again: an answer brings it back, a failure lets it rest anew. So a
    server that is down costs a request now and then, and not a wait for every one.
    """

    def __init__(self, urls: Sequence[str], *, patience: int, rest: float, clock: Callable[[], float]) -> None:
        self._servers = {url: _Server(url) for url in urls}
        self._patience = patience
        self._rest = rest
        self._clock = clock
        self._lock = threading.Lock()

    def choose(self, *, avoid: str | None = None) -> Choice:
        """The server for one request, which must end with ``answered`` or ``failed``; another than ``avoid`` if any."""
        with self._lock:
            now = self._clock()
            best = min(
                self._servers.values(),
                key=lambda server: (max(server.rests_until - now, 0.0), server.url == avoid, server.asked),
            )
            wait = max(best.rests_until - now, 0.0)
            if best.failures >= self._patience:  # this one request tries it
                best.rests_until = now + wait + self._rest
            best.asked += 1
            return Choice(best.url, wait)

    def answered(self, url: str) -> None:
        """A request got its answer."""
        with self._lock:
            server = self._servers[url]
            server.asked -= 1
            server.failures, server.rests_until = 0, 0.0

    def failed(self, url: str) -> None:
        """A request got none, or one that cannot be used."""
        with self._lock:
            server = self._servers[url]
            server.asked -= 1
            server.failures += 1
            if server.failures >= self._patience:
                server.rests_until = self._clock() + self._rest

    def left(self, url: str) -> None:
        """A request was given up without a judgement of the server."""
        with self._lock:
            self._servers[url].asked -= 1


def back_off(attempt: int, *, pause: float, source: random.Random) -> float:
    """Seconds before the next attempt: ``pause``, doubled each time, at most 30, of which a random half or more.

    Chance keeps the processes of a run from coming back to a restarted server all at once.
    """
    return min(pause * 2.0 ** min(attempt, 30), LONGEST_PAUSE) * source.uniform(0.5, 1.0)
