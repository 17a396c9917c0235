"""Batches over clients: the same scores, one model call at a time, and a queue that does not grow without end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
import torch

from difalign.core.types import RewardOutput
from difalign.reward_models.score_messages import ScoreRequest
from difalign.server.batching import Batcher, BatchLimits, QueueFull
from difalign.server.metrics import Metrics
from tests.server.scorers import Watched, request


def run(model: Watched, limits: BatchLimits, body: Callable[[Batcher], Awaitable[object]]) -> Metrics:
    """Let ``body`` ask a batcher that runs."""
    metrics = Metrics()

    async def whole() -> None:
        batcher = Batcher(model, limits=limits, metrics=metrics)
        batcher.start()
        try:
            await asyncio.wait_for(body(batcher), 30)
        finally:
            await batcher.stop()

    asyncio.run(whole())
    return metrics


def alone(asked: ScoreRequest) -> RewardOutput:
    return Watched().score(asked.media.float() / 255, asked.prompts)


def test_clients_at_once_share_batches_and_get_their_own_scores():
    model = Watched(pause=0.01)
    requests = [request("a" * (i % 5 + 1), "b", seed=i) for i in range(32)]
    outputs: list[RewardOutput] = []

    async def all_at_once(batcher: Batcher) -> None:
        outputs.extend(await asyncio.gather(*(batcher.score(asked) for asked in requests)))

    metrics = run(model, BatchLimits(window=0.01, max_batch=16), all_at_once)
    assert max(model.batches) == 16
    assert len(model.batches) < 32 / 4
    assert not model.overlapped
    assert metrics.snapshot()["pictures"] == 64
    for asked, output in zip(requests, outputs, strict=True):
        assert torch.equal(output.scores, alone(asked).scores)
        assert torch.equal(output.components["mean"], alone(asked).components["mean"])


def test_pictures_of_other_sizes_are_not_put_together():
    model = Watched()

    async def two(batcher: Batcher) -> None:
        await asyncio.gather(batcher.score(request("a", size=4)), batcher.score(request("b", size=8)))

    run(model, BatchLimits(window=0.01), two)
    assert model.batches == [1, 1]


def test_a_reward_of_groups_gets_each_request_whole_and_by_itself():
    model = Watched(groupwise=True)

    async def two(batcher: Batcher) -> None:
        await asyncio.gather(batcher.score(request("a", "b", "c")), batcher.score(request("d", "e")))

    run(model, BatchLimits(window=0.01, max_batch=2), two)
    assert model.batches == [3, 2]


def test_a_request_larger_than_a_batch_is_scored_in_pieces():
    model, asked = Watched(), request(*"abcde")

    async def one(batcher: Batcher) -> None:
        assert torch.equal((await batcher.score(asked)).scores, alone(asked).scores)

    run(model, BatchLimits(max_batch=2), one)
    assert model.batches == [2, 2, 1]


def test_one_client_s_bad_picture_does_not_spoil_the_others():
    good, bad = request("a", "b"), request("c", "fail", "d")
    outputs: list[RewardOutput] = []

    async def two(batcher: Batcher) -> None:
        outputs.extend(await asyncio.gather(batcher.score(good), batcher.score(bad)))

    metrics = run(Watched(), BatchLimits(window=0.01), two)
    assert torch.equal(outputs[0].scores, alone(good).scores)
    assert outputs[1].scores.isnan().tolist() == [False, True, False]
    assert list(outputs[1].errors) == [1]
    assert outputs[1].components["mean"].isnan().tolist() == [False, True, False]
    assert metrics.snapshot()["failed_pictures"] == 1


def test_a_full_queue_refuses_and_empties():
    model = Watched(pause=0.05)

    async def crowd(batcher: Batcher) -> None:
        first = asyncio.ensure_future(batcher.score(request("a")))
        await asyncio.sleep(0.02)  # the model has it
        waiting = [asyncio.ensure_future(batcher.score(request("b", "c"))) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(QueueFull, match="4 pictures wait; at most 5 may"):
            await batcher.score(request("d", "e"))
        await asyncio.gather(first, *waiting)
        await batcher.score(request(*"ghijklm"))  # larger than the queue, which is empty

    run(model, BatchLimits(window=0.0, max_waiting=5), crowd)


def test_who_no_longer_waits_is_not_scored():
    model = Watched(pause=0.05)

    async def leaving(batcher: Batcher) -> None:
        first = asyncio.ensure_future(batcher.score(request("a")))
        await asyncio.sleep(0.02)
        gone = asyncio.ensure_future(batcher.score(request("b", "c")))
        await asyncio.sleep(0)
        gone.cancel()
        await first
        await batcher.score(request("d"))

    run(model, BatchLimits(window=0.0), leaving)
    assert model.batches == [1, 1]


@pytest.mark.parametrize("limits", [{"window": -1.0}, {"max_batch": 0}, {"max_waiting": 0}], ids=str)
def test_bad_limits_are_refused(limits: dict):
    with pytest.raises(ValueError, match="must be at least"):
        BatchLimits(**limits)
