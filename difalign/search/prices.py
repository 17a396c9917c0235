"""What a row costs on this machine: measured on the real shapes, once, before a search is planned.

Floating-point operations are counted by torch (``FlopCounterMode``: two a multiply-add, attention included); a reward
that computes without torch counts none. Seconds are the median of a few timed micro-batches after a warm-up, with the
device synchronised. Both divide a full micro-batch by its rows: smaller batches cost more seconds a row than that.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from difalign.core.protocols import Pipeline, RewardModel
from difalign.core.types import Metadata, NoiseGrid
from difalign.rollout.branches import branch_rows, estimates
from difalign.search.budget import Forecast, Price, Unit, Walk
from difalign.search.schedule import Check

_REPEATS = 3  # own: timed micro-batches; the median of three is not moved by one that was disturbed
_SHORT_WALK = 6  # own: steps that make pictures of the model's kind, which some rewards take their time by
_TERA = 1e12


@dataclass(frozen=True, slots=True)
class Prices:
    """The price of a row in each unit, and the memory at work while it was measured."""

    of: dict[Unit, Price]  # in a full micro-batch
    alone: Price  # seconds of a row that is a micro-batch by itself
    rows: int  # of the full micro-batch
    peak_bytes: int | None  # of the accelerator; None on the CPU, which does not tell


@torch.no_grad()
def measure(
    pipeline: Pipeline,
    reward: RewardModel,
    judge: RewardModel,
    prompts: Sequence[str],
    *,
    walk: Walk,
    grid: NoiseGrid,
    micro_batch: int,
    metadata: Metadata | None = None,
) -> Prices:
    """Walk one micro-batch through a short chain, decode it and have it scored, counting and timing every part.

    Args:
        pipeline: the model.
        reward: judges finished samples.
        judge: of estimates; scores them at the levels of ``walk``.
        prompts: the first ones are used, repeated until the micro-batch is full.
        walk: the search.
        grid: of the search, T steps.
        micro_batch: rows.
        metadata: beside the prompts.
    """
    parts = _Parts(pipeline, reward, judge, walk, grid)
    device = pipeline.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    told = [{} for _ in prompts] if metadata is None else list(metadata)
    chosen = [i % len(prompts) for i in range(micro_batch)]
    full = parts.measure([prompts[i] for i in chosen], [told[i] for i in chosen])
    alone = full if micro_batch == 1 else parts.measure([prompts[0]], [told[0]])
    of: dict[Unit, Price] = {"nfe": Price(), "seconds": parts.price(full, lambda m: m.seconds, rows=micro_batch)}
    if full.step.flops > 0:
        of["tflops"] = parts.price(full, lambda m: m.flops / _TERA, rows=micro_batch)
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return Prices(of, parts.price(alone, lambda m: m.seconds, rows=1), micro_batch, peak)


def predicted_seconds(prices: Prices, plan: Forecast, walk: Walk, *, prompts: int, micro_batch: int) -> float:
    """The time of a search of ``prompts`` prompts together, every micro-batch taken at its own size.

    A micro-batch is taken to cost what one row does, and equally more with every further row.
    """
    many, one = prices.of["seconds"], prices.alone

    def batches(rows: int, full: float, alone: float) -> float:
        slope = (full * prices.rows - alone) / max(prices.rows - 1, 1)
        sizes = [micro_batch] * (rows // micro_batch) + ([rows % micro_batch] if rows % micro_batch else [])
        return sum(alone + slope * (size - 1) for size in sizes)

    def row_preview(price: Price) -> float:
        return price.score if price.preview is None else price.preview

    spent = 0.0
    for rows in plan.alive:
        spent += batches(rows * prompts, many.nfe * walk.branches, one.nfe * walk.branches)
    for check in walk.checks if walk.scored else ():
        rows = plan.alive[check.step] * prompts
        spent += batches(rows, row_preview(many), row_preview(one))
        spent += batches(rows, many.decode, one.decode) if check.reading.decoded else 0.0
    rows = plan.finished * prompts
    return spent + batches(rows, many.decode, one.decode) + batches(rows, many.score, one.score)


@dataclass(frozen=True, slots=True)
class _Micro:
    """The parts of a search on one micro-batch."""

    step: _Measured
    decode: _Measured
    score: _Measured
    looks: tuple[_Measured, ...]


@dataclass(frozen=True, slots=True)
class _Parts:
    """What is measured."""

    pipeline: Pipeline
    reward: RewardModel
    judge: RewardModel
    walk: Walk
    grid: NoiseGrid

    def measure(self, texts: list[str], metadata: Metadata) -> _Micro:
        device, sample = self.pipeline.device, _Sample.walk(self.pipeline, self.grid, texts)
        pixels = self.pipeline.decode(sample.final)
        looks = []
        for check in self.walk.checks if self.walk.scored else ():
            seen = sample.seen(check)
            media = self.pipeline.decode(seen) if check.reading.decoded else seen
            score = partial(self.judge.score, media, texts, metadata=metadata, sigma=check.sigma)
            looks.append(_unit(score, device))
        return _Micro(
            step=_unit(sample.step, device),
            decode=_unit(lambda: self.pipeline.decode(sample.final), device),
            score=_unit(lambda: self.reward.score(pixels, texts, metadata=metadata), device),
            looks=tuple(looks),
        )

    def price(self, micro: _Micro, pick: Callable[[_Measured], float], *, rows: int) -> Price:
        return Price(
            nfe=pick(micro.step) / (rows * self.walk.branches),
            decode=pick(micro.decode) / rows,
            score=pick(micro.score) / rows,
            preview=statistics.fmean(pick(look) for look in micro.looks) / rows if micro.looks else None,
        )


@dataclass(frozen=True, slots=True)
class _Measured:
    """What a micro-batch takes."""

    flops: float
    seconds: float


def _unit(work: Callable[[], object], device: torch.device) -> _Measured:
    """Count one call after a warm-up, in which texts are encoded, and time the next ones."""
    work()
    with FlopCounterMode(display=False) as counter:
        work()
    times = []
    for _ in range(_REPEATS):
        _synchronise(device)
        begun = time.perf_counter()
        work()
        _synchronise(device)
        times.append(time.perf_counter() - begun)
    return _Measured(float(counter.get_total_flops()), statistics.median(times))


def _synchronise(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


@dataclass(frozen=True, slots=True)
class _Sample:
    """A micro-batch of some prompts, in the middle of a walk and at its end."""

    pipeline: Pipeline
    grid: NoiseGrid  # of the search
    texts: list[str]
    middle: Tensor  # [B, *latent]
    final: Tensor  # [B, *latent]

    @classmethod
    def walk(cls, pipeline: Pipeline, grid: NoiseGrid, texts: list[str]) -> _Sample:
        short = pipeline.grid(min(grid.num_steps, _SHORT_WALK))
        generators = [torch.Generator().manual_seed(i) for i in range(len(texts))]
        x = pipeline.initial_latents(generators).to(pipeline.device, torch.float32)
        condition, middle = pipeline.encode(texts), x
        for step in range(short.num_steps):
            at = torch.full((len(texts),), step, device=x.device)
            branches = branch_rows(pipeline, short, x, at, condition, conditional=False)
            quiet = torch.zeros(at.shape, dtype=torch.float32, device=x.device)
            x = pipeline.process.transition(x, branches.guided, short, at, quiet).mean
            middle = x if step == short.num_steps // 2 else middle
        return cls(pipeline, grid, texts, middle, x)

    def step(self) -> object:
        """One step of the micro-batch, as the engine makes it."""
        at = torch.full((len(self.texts),), self.grid.num_steps // 2, device=self.middle.device)
        condition = self.pipeline.encode(self.texts).rows(torch.arange(len(self.texts)))
        branches = branch_rows(self.pipeline, self.grid, self.middle, at, condition, conditional=False)
        quiet = torch.zeros(at.shape, dtype=torch.float32, device=at.device)
        return self.pipeline.process.transition(self.middle, branches.guided, self.grid, at, quiet).mean

    def seen(self, check: Check) -> Tensor:
        """What the judge of a check reads of the micro-batch, [B, k*C, ...]."""
        at = torch.full((len(self.texts),), check.step, device=self.middle.device)
        condition, sources = self.pipeline.encode(self.texts), check.reading.sources
        conditional = "conditional" in sources
        branches = branch_rows(self.pipeline, self.grid, self.middle, at, condition, conditional=conditional)
        return estimates(self.pipeline.process, self.middle, branches, self.grid, at, sources=sources)
