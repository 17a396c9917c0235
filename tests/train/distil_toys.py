"""A pipeline and a teacher in closed form, and their walks on disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from difalign.core.types import Source
from difalign.train.estimate_generation import Walk, generate, half_precision, label, single_precision
from difalign.train.estimate_store import EstimateStore, StoredPrompt, StorePlan, open_store
from difalign.train.estimate_table import ShardedTable
from tests.teachers import LinearReward, linear_reward
from tests.toys import ElementwisePolicy, ToyPipeline

T = TypeVar("T")

LATENT = (3, 2, 2)
STEPS = 4
ASKED = (0.5, 0.75)  # of the grid of four steps with shift 3: 1, 0.9, 0.75, 0.5
TEACHER = "toy teacher"


class Solo:
    """A process alone, or one of several that do not exchange anything."""

    def __init__(self, rank: int = 0, world: int = 1) -> None:
        self.rank, self.world = rank, world

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def share(self, items: Sequence[T]) -> list[T]:
        return list(items[self.rank :: self.world])

    def agree(self, value: T) -> T:
        return value

    def gather(self, items: list[T]) -> list[T]:
        return items

    def total(self, values: Sequence[float]) -> list[float]:
        return list(values)

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        return None

    def barrier(self) -> None:
        return None


def pipeline() -> ToyPipeline:
    return ToyPipeline(ElementwisePolicy(), latent=LATENT)


def teacher() -> LinearReward:
    return linear_reward(torch.linspace(-1, 1, 12))


def plan(**changes: Any) -> StorePlan:
    """Three prompts of five walks in shards of four: the last shard has three."""
    prompts = tuple(StoredPrompt(text, {"kind": text}) for text in ("0.5", "-1", "0.25"))
    return StorePlan(**{"prompts": prompts, "samples": 5, "seed": 3, "shard_rows": 4, "settings": {"a": 1}} | changes)


def levels() -> dict[float, float]:
    grid = pipeline().grid(STEPS).sigma
    return {0.75: float(grid[2]), 0.5: float(grid[3])}


def walk(*sources: Source, micro_batch: int = 3) -> Walk:
    sigmas = tuple(sorted(levels().values(), reverse=True))
    return Walk(STEPS, sigmas, sources or ("guided", "state"), micro_batch, half_precision, single_precision)


def filled(folder: Path, *, labelled: bool = True, **changes: Any) -> EstimateStore:
    """A store with all its shards, and the teacher's scores."""
    store = open_store(folder, plan(**changes), levels=levels())
    generate(pipeline(), store, walk(), team=Solo(), progress=silent)
    if labelled:
        label(teacher(), store, teacher=TEACHER, pixels=pixels, micro_batch=3, team=Solo(), progress=silent)
    return store


def pixels(stored: Tensor) -> Tensor:
    """What the toy decodes to: everything, squeezed into [0, 1]."""
    return stored.float().sigmoid()


def silent(done: int, total: int) -> None:
    """Progress that nobody looks at."""


def table(
    store: EstimateStore, labels: Sequence, source: Source = "guided", *, decode: Callable = pixels, cache: bool = False
) -> ShardedTable:
    """The store as readers see it."""
    return ShardedTable(store, labels, source=source, pixels=decode, cache=cache)
