"""Which recorded edges an update learns from: all of a batch, or so many of the trajectories that a rollout kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from difalign.core.config import RunConfig
from difalign.core.rng import generator
from difalign.objective.advantages import Advantages, informative_rows
from difalign.rollout.grouping import first_leaves
from difalign.train.collector import Batch
from difalign.train.runtime import Runtime


@dataclass(frozen=True, slots=True)
class Part:
    """What one update is made from."""

    batch: Batch
    advantages: Advantages
    rows: Tensor  # [K] int64, this process's edges; pairs lie side by side
    count: int  # edges over all processes
    total: float  # what the sum over edges is divided by: ``count``, or what a whole part would have


def partition(
    batches: Sequence[Batch], advantages: Sequence[Advantages], config: RunConfig, runtime: Runtime, *, update: int
) -> list[Part]:
    """The parts of one rollout in their order, at least one; to be called by all processes.

    A trajectory is what leads to one sample: the edges whose first leaf that is, or, where pairs are compared, the
    edges of both samples of a pair. Which trajectories fall into which update does not depend on the number of
    processes.

    Args:
        batches: of one rollout.
        advantages: of each batch.
        config: the run.
        runtime: this process.
        update: the number of the first of these updates; it keys the order.
    """
    size, passes = config.training.trajectories_per_update, config.training.inner_epochs
    kept = [_kept_rows(each, config) for each in advantages]
    if size is not None:
        (batch,), (rows,), (compared,) = batches, kept, advantages
        units = _units(batch, rows)
        order = _order(units, passes, (config.seed, update), runtime)
        cuts = _cuts(order, size=size, drop=config.training.tail == "drop")
        return [_part(batch, compared, rows, units, cut, size=size, runtime=runtime) for cut in cuts]
    parts = []
    for _ in range(passes):
        for batch, compared, rows in zip(batches, advantages, kept, strict=True):
            key = generator("rows", config.seed, update + len(parts))
            shuffled = rows[torch.randperm(len(rows), generator=key)].flatten()
            count = round(runtime.total([shuffled.numel()])[0])
            parts.append(Part(batch, compared, shuffled, count, total=count))
    return parts


def kept_figures(batches: Sequence[Batch], advantages: Sequence[Advantages], runtime: Runtime) -> dict[str, float]:
    """How many trajectories a rollout keeps, over all processes; empty if it does not select any."""
    figures = [0, 0, 0]
    for batch, compared in zip(batches, advantages, strict=True):
        if compared.extremes is None:
            return {}
        leaf = first_leaves(batch.scored.trajectories).cpu()
        found = compared.extremes
        for place, rows in enumerate((found.rows, found.positive, found.negative)):
            figures[place] += torch.unique(leaf[rows]).numel()
    names = ("kept", "kept_positive", "kept_negative")
    return dict(zip(names, runtime.total(figures), strict=True))


def _kept_rows(compared: Advantages, config: RunConfig) -> Tensor:
    """Edges that count, [K, 1] in rising order; or pairs of them, [K, 2]."""
    if config.objective.surrogate == "pair":
        assert compared.extremes is not None, "the comparison picks extremes for pairs"
        return compared.extremes.pairs
    advantage = compared.advantage.cpu()
    rows = torch.arange(advantage.numel()) if compared.extremes is None else compared.extremes.rows
    if compared.scored is not None:  # what has no reward is not trained on, not even by a divergence
        rows = rows[compared.scored[rows]]
    if config.objective.filter_zero_variance:
        rows = rows[informative_rows(advantage[rows])]
    return rows[:, None]


def _units(batch: Batch, rows: Tensor) -> Tensor:
    """The trajectory that each of ``rows`` [K, P] belongs to, [K], numbered alike on any number of processes."""
    walks = batch.scored.trajectories
    leaf = first_leaves(walks).cpu()[rows[:, 0]]
    leaves_per_root = walks.final.shape[0] // batch.root_position.numel()
    return batch.root_position[leaf // leaves_per_root] * leaves_per_root + leaf % leaves_per_root


def _order(units: Tensor, passes: int, key: tuple[int, int], runtime: Runtime) -> list[int]:
    """All trajectories of all processes, shuffled anew in every pass."""
    known = sorted(set(runtime.gather(torch.unique(units).tolist())))
    order: list[int] = []
    for number in range(passes):
        shuffled = torch.randperm(len(known), generator=generator("trajectories", *key, number)).tolist()
        order += [known[i] for i in shuffled]
    return order


def _cuts(order: Sequence[int], *, size: int, drop: bool) -> list[Sequence[int]]:
    """``size`` trajectories an update; what is left over makes a smaller one, or is dropped. At least one, if empty."""
    ends = len(order) - len(order) % size if drop else len(order)
    return [order[start : min(start + size, ends)] for start in range(0, max(ends, 1), size)]


def _part(
    batch: Batch, compared: Advantages, rows: Tensor, units: Tensor, cut: Sequence[int], *, size: int, runtime: Runtime
) -> Part:
    """The edges of some trajectories. In a smaller part than usual each of them weighs as much as in a whole one."""
    places = [(units == unit).nonzero().flatten() for unit in cut]
    taken = rows[torch.cat(places)].flatten() if places else rows[:0].flatten()
    count = round(runtime.total([taken.numel()])[0])
    return Part(batch, compared, taken, count, total=count * size / max(len(cut), 1))
