"""Several processes of a run as threads: the collectives of ``Runtime`` without starting a process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")

_SECONDS = 30.0  # a process that does not come to a collective is an error, not a wait for ever


@dataclass
class Meeting:
    """Where the processes meet, and what they bring."""

    world: int
    barrier: threading.Barrier = field(init=False)
    brought: list[Any] = field(init=False)

    def __post_init__(self) -> None:
        self.barrier = threading.Barrier(self.world)
        self.brought = [None] * self.world

    def exchange(self, rank: int, value: Any) -> list[Any]:
        """Every process's value, in order of rank; each must call."""
        self.brought[rank] = value
        self.barrier.wait(_SECONDS)
        everything = list(self.brought)
        self.barrier.wait(_SECONDS)
        return everything


@dataclass(frozen=True)
class ThreadRuntime:
    """One of several processes; it speaks as ``difalign.train.runtime.Runtime`` does."""

    rank: int
    meeting: Meeting

    @property
    def world(self) -> int:
        return self.meeting.world

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def share(self, items: Sequence[T]) -> list[T]:
        return list(items[self.rank :: self.world])

    def gather(self, items: list[T]) -> list[T]:
        return [item for part in self.meeting.exchange(self.rank, items) for item in part]

    def total(self, values: Sequence[float]) -> list[float]:
        parts = self.meeting.exchange(self.rank, list(values))
        assert len({len(part) for part in parts}) == 1  # a real sum would hang or fail
        return [sum(column) for column in zip(*parts, strict=True)]


def run_together(world: int, body: Callable[[ThreadRuntime], T]) -> list[T]:
    """Run ``body`` in ``world`` processes at once; its results in order of rank."""
    meeting = Meeting(world)

    def process(rank: int) -> T:
        try:
            return body(ThreadRuntime(rank, meeting))
        except BaseException:
            meeting.barrier.abort()  # the others stop waiting
            raise

    with ThreadPoolExecutor(world) as pool:
        futures = [pool.submit(process, rank) for rank in range(world)]
    return [future.result() for future in futures]
