"""Alarms: what a run has seen go wrong, one line each, with what to do about it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Alarm:
    """One alarm, as a line of ``alarms.jsonl`` holds it."""

    name: str  # of the guard that gave it
    rollout: int  # how many were done, or which was going on
    update: int  # likewise
    seen: str  # what was seen, with the value and the limit
    remedy: str
    value: float | None = None  # None for what is no number
    limit: float | None = None

    @property
    def line(self) -> str:
        """The alarm in one line."""
        return f"{self.name} at rollout {self.rollout}, update {self.update}: {self.seen}; {self.remedy}"


def alarm_to_json(alarm: Alarm) -> dict[str, Any]:
    """The alarm as plain containers."""
    return asdict(alarm)


def alarm_from_json(data: Mapping[str, Any]) -> Alarm:
    """The alarm that ``alarm_to_json`` wrote.

    Raises:
        ValueError: if a field is missing or of the wrong type.
    """
    try:
        return Alarm(
            name=str(data["name"]),
            rollout=int(data["rollout"]),
            update=int(data["update"]),
            seen=str(data["seen"]),
            remedy=str(data["remedy"]),
            value=_number(data.get("value")),
            limit=_number(data.get("limit")),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not an alarm: {type(error).__name__} {error}; write it with RunLog") from error


def count_alarms(alarms: Iterable[Alarm]) -> dict[str, int]:
    """How many there were of each name, in order of first appearance."""
    return dict(Counter(alarm.name for alarm in alarms))


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
