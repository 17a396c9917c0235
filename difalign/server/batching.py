"""Requests of several clients as one batch of the model, one batch at a time, with a bounded queue before it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import math
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import cast, final

import torch
from torch import Tensor

from difalign.core.answers import checked
from difalign.core.protocols import RewardModel
from difalign.core.types import RewardOutput
from difalign.reward_models.score_messages import ScoreRequest
from difalign.server.metrics import Metrics

_LOG = logging.getLogger(__name__)


class QueueFull(RuntimeError):
    """More pictures wait than may."""


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """How requests are put together."""

    window: float = 0.005  # seconds that an idle model waits for company; a request's own way takes about as long
    max_batch: int = 64  # pictures that the model is given at once
    max_waiting: int = 1024  # pictures in the queue; more are refused, and the client comes again

    def __post_init__(self) -> None:
        for name, least in (("window", 0), ("max_batch", 1), ("max_waiting", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} = {getattr(self, name)}: must be at least {least}")


@dataclass(frozen=True, slots=True)
class _Job:
    request: ScoreRequest
    done: asyncio.Future[RewardOutput]


@final
class Batcher:
    """Scores requests with one model in one thread, so that it is never asked twice at once.

    Requests with media of one shape wait at most ``window`` seconds for each other and are scored as one batch; while
    the model works they gather by themselves. A reward that compares the pictures of a call (``groupwise``) is given
    each request by itself. Where a batch fails, its requests are scored one by one, and then their rows: a bad picture
    fails alone.
    """

    def __init__(self, model: RewardModel, *, limits: BatchLimits, metrics: Metrics) -> None:
        self._model = model
        self._groupwise = bool(getattr(model, "groupwise", False))
        self._limits = limits
        self._metrics = metrics
        self._waiting: deque[_Job] = deque()
        self._news = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="reward")
        self._task: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """Pictures in the queue."""
        return sum(len(job.request) for job in self._waiting)

    def start(self) -> None:
        """Begin to take requests; to be called inside the event loop."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Finish the batch in hand and refuse the rest."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        for job in self._waiting:
            job.done.cancel()
        self._thread.shutdown(wait=True, cancel_futures=True)

    async def score(self, request: ScoreRequest) -> RewardOutput:
        """The scores of ``request``; rows that the model could not score are not valid.

        Raises:
            QueueFull: if too many pictures wait already. A request larger than the queue is taken when it is empty.
        """
        if self._waiting and self.waiting + len(request) > self._limits.max_waiting:
            raise QueueFull(f"{self.waiting} pictures wait; at most {self._limits.max_waiting} may")
        job = _Job(request, asyncio.get_running_loop().create_future())
        self._waiting.append(job)
        self._news.set()
        return await job.done

    async def _run(self) -> None:
        while True:
            self._news.clear()
            if not self._waiting:
                await self._news.wait()
            await self._company()
            batch = self._take()
            if batch:
                await self._serve(batch)

    async def _company(self) -> None:
        """Wait until a batch is full or the window has passed."""
        loop = asyncio.get_running_loop()
        end = loop.time() + self._limits.window
        while not self._groupwise and self.waiting < self._limits.max_batch and (left := end - loop.time()) > 0:
            self._news.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), left)

    def _take(self) -> list[_Job]:
        """The oldest job and those of its kind behind it, up to a full batch; jobs nobody waits for are dropped."""
        batch: list[_Job] = []
        kept: deque[_Job] = deque()
        rows = 0
        for job in self._waiting:
            if job.done.done():  # the client went away
                continue
            fits = not batch or (_kind(job) == _kind(batch[0]) and rows + len(job.request) <= self._limits.max_batch)
            if fits and not (batch and self._groupwise):
                batch.append(job)
                rows += len(job.request)
            else:
                kept.append(job)
        self._waiting = kept
        return batch

    async def _serve(self, batch: Sequence[_Job]) -> None:
        begin = time.perf_counter()
        outputs = await self._outputs([job.request for job in batch])
        self._metrics.scored(
            pictures=sum(len(job.request) for job in batch),
            failed=sum(len(output.errors) for output in outputs),
            requests=len(batch),
            seconds=time.perf_counter() - begin,
        )
        for job, output in zip(batch, outputs, strict=True):
            if not job.done.done():
                job.done.set_result(output)

    async def _outputs(self, requests: Sequence[ScoreRequest]) -> list[RewardOutput]:
        """One output a request; in one call of the model if that works."""
        if len(requests) > 1:
            joined = await self._attempt(_joined(requests))
            if isinstance(joined, RewardOutput):
                ends = list(itertools.accumulate(len(request) for request in requests))
                return [_rows(joined, end - len(request), end) for request, end in zip(requests, ends, strict=True)]
        return [await self._alone(request) for request in requests]

    async def _alone(self, request: ScoreRequest) -> RewardOutput:
        """One request; in pieces if it is larger than a batch, and row by row if it fails."""
        size = len(request) if self._groupwise else self._limits.max_batch
        return _concatenated([await self._piece(_part(request, at, at + size)) for at in range(0, len(request), size)])

    async def _piece(self, request: ScoreRequest) -> RewardOutput:
        output = await self._attempt(request)
        if isinstance(output, RewardOutput):
            return output
        if len(request) == 1 or self._groupwise:
            return _failed(len(request), output)
        return _concatenated([await self._piece(_part(request, row, row + 1)) for row in range(len(request))])

    async def _attempt(self, request: ScoreRequest) -> RewardOutput | str:
        """The scores, or why there are none: what a model raises is logged here and told to clients in a line."""
        work = asyncio.get_running_loop().run_in_executor(self._thread, _score, self._model, request)
        await asyncio.wait([work])
        error = work.exception()
        if error is None:
            return work.result()
        _LOG.warning("the scorer failed on %d pictures", len(request), exc_info=error)
        return f"the scorer failed: {type(error).__name__}: {error}"


def _kind(job: _Job) -> tuple[object, ...]:
    """What the requests of a batch have in common."""
    request = job.request
    return (*request.media.shape[1:], request.sigma, request.metadata is None)


def _score(model: RewardModel, request: ScoreRequest) -> RewardOutput:
    """What the model says of pixels in [0, 1].

    Raises:
        ValueError: if it is not one number a picture.
    """
    metadata = None if request.metadata is None else list(request.metadata)
    with torch.no_grad():
        media = request.media.float() / 255  # the model moves it to its device
        given = model.score(media, list(request.prompts), metadata=metadata, sigma=request.sigma)
    here = {name: values.detach().cpu() for name, values in {"": given.scores, **given.components}.items()}
    return checked(model.name, RewardOutput(here.pop(""), here, given.valid, given.errors), request.prompts)


def _joined(requests: Sequence[ScoreRequest]) -> ScoreRequest:
    metadata = [request.metadata for request in requests]
    return ScoreRequest(
        media=torch.cat([request.media for request in requests]),
        prompts=tuple(prompt for request in requests for prompt in request.prompts),
        metadata=None if metadata[0] is None else tuple(row for rows in metadata if rows is not None for row in rows),
        sigma=requests[0].sigma,
    )


def _part(request: ScoreRequest, begin: int, end: int) -> ScoreRequest:
    return ScoreRequest(
        media=request.media[begin:end],
        prompts=request.prompts[begin:end],
        metadata=None if request.metadata is None else request.metadata[begin:end],
        sigma=request.sigma,
    )


def _rows(output: RewardOutput, begin: int, end: int) -> RewardOutput:
    """Some of the rows; of an output that ``checked_output`` made."""
    assert output.valid is not None
    return RewardOutput(
        output.scores[begin:end],
        {name: values[begin:end] for name, values in output.components.items()},
        output.valid[begin:end],
        {row - begin: why for row, why in output.errors.items() if begin <= row < end},
    )


def _failed(rows: int, why: str) -> RewardOutput:
    return RewardOutput(
        torch.full((rows,), math.nan), {}, torch.zeros(rows, dtype=torch.bool), dict.fromkeys(range(rows), why)
    )


def _concatenated(outputs: Sequence[RewardOutput]) -> RewardOutput:
    """Rows of several outputs; a component that one of them lacks is NaN there."""
    if len(outputs) == 1:
        return outputs[0]
    names = dict.fromkeys(name for output in outputs for name in output.components)
    nothing = [torch.full_like(output.scores, math.nan) for output in outputs]
    starts = list(itertools.accumulate((len(output.scores) for output in outputs), initial=0))
    placed = zip(starts[:-1], outputs, strict=True)
    return RewardOutput(
        torch.cat([output.scores for output in outputs]),
        {
            name: torch.cat([output.components.get(name, lack) for output, lack in zip(outputs, nothing, strict=True)])
            for name in names
        },
        torch.cat([cast("Tensor", output.valid) for output in outputs]),
        {start + row: why for start, output in placed for row, why in output.errors.items()},
    )
