"""Rounds alternate, the fastest counts, and phases add up."""

from __future__ import annotations

from benchmarks.timing import PhaseClock, alternate, fastest


def test_sides_take_turns_and_each_round_is_timed():
    calls: list[str] = []
    ticks = iter(range(100))
    sides = {name: lambda name=name: calls.append(name) for name in ("a", "b")}
    seconds = alternate(sides, rounds=3, clock=lambda: float(next(ticks)))
    assert calls == ["a", "b"] * 3
    assert seconds == {"a": [1.0] * 3, "b": [1.0] * 3}


def test_fastest_round_counts():
    assert fastest({"a": [3.0, 1.0, 2.0], "b": [5.0]}) == {"a": 1.0, "b": 5.0}


def test_phases_collect_the_time_up_to_their_marks():
    clock = PhaseClock()
    for phase in ("sampling", "training", "sampling"):
        sum(range(10_000))
        clock.mark(phase)
    assert list(clock.seconds) == ["sampling", "training"]
    assert clock.total == sum(clock.seconds.values()) > 0
