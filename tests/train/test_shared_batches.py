"""Processes that split a batch take the step of one: the same gradient, also where the loss compares their rows."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from difalign.core.student_bank import read_bank
from difalign.objective.distillation import DistillationLoss
from difalign.train.shared_batches import backward_together, score_together
from tests.train.distill_worker import teach
from tests.train.launched import run, said

T = TypeVar("T")


@dataclass
class Table:
    """Where the threads of a test lay what they exchange."""

    world: int
    meeting: threading.Barrier
    laid: dict[int, object] = field(default_factory=dict)

    def exchange(self, rank: int, value: object) -> list:
        self.laid[rank] = value
        self.meeting.wait()
        found = [self.laid[rank] for rank in range(self.world)]
        self.meeting.wait()
        return found


@dataclass
class Seat:
    """One thread as a process."""

    rank: int
    table: Table

    @property
    def world(self) -> int:
        return self.table.world

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def share(self, items: Sequence[T]) -> list[T]:
        return list(items[self.rank :: self.world])

    def agree(self, value: T) -> T:
        return self.table.exchange(self.rank, value)[0]

    def gather(self, items: list[T]) -> list[T]:
        return [item for part in self.table.exchange(self.rank, items) for item in part]

    def total(self, values: Sequence[float]) -> list[float]:
        return [sum(column) for column in zip(*self.table.exchange(self.rank, list(values)), strict=True)]

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        own = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters]
        for parameter, parts in zip(parameters, zip(*self.table.exchange(self.rank, own), strict=True), strict=True):
            parameter.grad = torch.stack(parts).sum(dim=0)

    def barrier(self) -> None:
        self.table.meeting.wait()


class Scorer(nn.Module):
    """A layer that a score depends on and one that none does."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.unused = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.weight).sum(dim=1).tanh()


X = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
TARGET = torch.randn(5, generator=torch.Generator().manual_seed(1))
LOSS = DistillationLoss(error_weight=0.3, ranking_weight=1.0)


def gradients(team: Seat | None) -> list[Tensor | None]:
    scorer = Scorer()
    rows = torch.arange(5)
    scores = score_together(lambda part: scorer(X[part]), rows, team)
    backward_together(LOSS(scores, TARGET, torch.zeros(5)), list(scorer.parameters()), team)
    return [scorer.weight.grad, scorer.unused.grad]


@pytest.mark.parametrize("world", [2, 3, 7])
def test_gradient_is_that_of_one_process(world: int):
    """With seven processes for five rows, two have none."""
    alone, _ = gradients(None)
    table, found = Table(world, threading.Barrier(world)), {}
    threads = [
        threading.Thread(target=lambda rank=rank: found.update({rank: gradients(Seat(rank, table))}))
        for rank in range(world)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert len(found) == world
    for weight, unused in found.values():
        assert torch.allclose(weight, alone, rtol=1e-5, atol=1e-7)
        assert unused is None


@pytest.mark.multiproc
def test_two_processes_teach_the_students_of_one(tmp_path: Path):
    teach(tmp_path / "one", None)
    codes = run(2, ["-m", "tests.train.distill_worker", str(tmp_path / "two")], logs=tmp_path / "logs", seconds=120)
    assert codes == [0, 0], said(tmp_path / "logs")
    one, two = read_bank(tmp_path / "one"), read_bank(tmp_path / "two")
    assert [level.steps for level in two.levels] == [12, 12]
    for level, other in zip(one.levels, two.levels, strict=True):
        weights, others = load_file(tmp_path / "one" / level.file), load_file(tmp_path / "two" / other.file)
        assert weights.keys() == others.keys()
        for name in weights:
            assert torch.allclose(weights[name], others[name], rtol=1e-5, atol=1e-7)
        assert other.last_loss == pytest.approx(level.last_loss, rel=1e-5)
