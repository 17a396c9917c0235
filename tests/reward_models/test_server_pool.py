"""Which server is asked, which rests, and when a client comes back."""

from __future__ import annotations

import random

from difalign.reward_models.server_pool import LONGEST_PAUSE, ServerPool, back_off


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def pool(*urls: str, clock: Clock | None = None) -> ServerPool:
    return ServerPool(urls, patience=2, rest=10.0, clock=Clock() if clock is None else clock)


def test_the_least_busy_server_is_asked():
    servers = pool("a", "b", "c")
    assert sorted(servers.choose().url for _ in range(3)) == ["a", "b", "c"]
    servers.answered("b")
    assert servers.choose().url == "b"


def test_after_a_failure_another_server_is_asked():
    servers = pool("a", "b")
    assert servers.choose().url == "a"
    servers.failed("a")
    assert servers.choose(avoid="a").url == "b"
    assert pool("a").choose(avoid="a").url == "a"


def test_a_server_that_keeps_failing_rests_and_is_tried_by_one_request():
    clock = Clock()
    servers = pool("a", "b", clock=clock)
    for _ in range(2):
        servers.failed("a")
    assert {servers.choose().url for _ in range(5)} == {"b"}
    clock.now += 10.0
    assert [servers.choose().url for _ in range(3)] == ["a", "b", "b"]  # one tries it
    servers.failed("a")
    assert {servers.choose().url for _ in range(3)} == {"b"}
    clock.now += 10.0
    assert servers.choose().url == "a"
    servers.answered("a")
    assert "a" in {servers.choose().url for _ in range(3)}


def test_where_all_rest_the_first_to_return_is_waited_for():
    clock = Clock()
    servers = pool("a", "b", clock=clock)
    for url in ("a", "a"):
        servers.failed(url)
    clock.now += 4.0
    for url in ("b", "b"):
        servers.failed(url)
    choice = servers.choose()
    assert (choice.url, choice.wait) == ("a", 6.0)


def test_an_answer_forgets_failures():
    servers = pool("a")
    servers.failed("a")
    servers.answered("a")
    servers.failed("a")
    assert servers.choose().wait == 0.0


def test_pauses_double_up_to_a_limit_and_differ():
    source = random.Random(0)
    for attempt in range(12):
        whole = min(2.0**attempt, LONGEST_PAUSE)
        pauses = [back_off(attempt, pause=1.0, source=source) for _ in range(50)]
        assert whole / 2 <= min(pauses) < 0.6 * whole
        assert 0.9 * whole < max(pauses) <= whole
    assert back_off(5000, pause=0.0, source=source) == 0.0
