"""What a reward server has done so far, in numbers."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import final


@final
class Metrics:
    """Counters of one event loop; ``snapshot`` is plain JSON."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = clock()
        self._answers: Counter[int] = Counter()  # by status
        self._answer_seconds = 0.0
        self._slowest = 0.0
        self._model_seconds = 0.0
        self._counts: Counter[str] = Counter()

    def answered(self, status: int, *, seconds: float) -> None:
        """A request was answered, ``seconds`` after its first byte."""
        self._answers[status] += 1
        self._answer_seconds += seconds
        self._slowest = max(self._slowest, seconds)

    def scored(self, *, pictures: int, failed: int, requests: int, seconds: float) -> None:
        """The model scored one batch."""
        self._counts.update(pictures=pictures, failed_pictures=failed, requests=requests, batches=1)
        self._model_seconds += seconds

    def snapshot(self) -> dict[str, object]:
        """Counts since the start; seconds are wall-clock."""
        counts, batches = self._counts, max(self._counts["batches"], 1)
        return {
            "uptime_seconds": round(self._clock() - self._began, 3),
            "answers": {str(status): number for status, number in sorted(self._answers.items())},
            "mean_answer_seconds": round(self._answer_seconds / max(self._answers.total(), 1), 6),
            "slowest_answer_seconds": round(self._slowest, 6),
            "pictures": counts["pictures"],
            "failed_pictures": counts["failed_pictures"],
            "batches": counts["batches"],
            "pictures_a_batch": round(counts["pictures"] / batches, 3),
            "requests_a_batch": round(counts["requests"] / batches, 3),
            "model_seconds": round(self._model_seconds, 6),
        }
