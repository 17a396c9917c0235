"""What the stages of a distillation ask of the processes that work on it together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

from torch import nn

T = TypeVar("T")


class Team(Protocol):
    """The processes that work together; ``difalign.train.runtime.Runtime`` is one, of any number of them."""

    @property
    def rank(self) -> int:
        """This process's number, from 0."""
        ...

    @property
    def world(self) -> int:
        """How many there are."""
        ...

    @property
    def is_main(self) -> bool:
        """Whether this process writes what is written once."""
        ...

    def share(self, items: Sequence[T]) -> list[T]:
        """This process's part of a list that all hold."""
        ...

    def agree(self, value: T) -> T:
        """The main process's value, on every process."""
        ...

    def gather(self, items: list[T]) -> list[T]:
        """The items of all processes, in order of rank."""
        ...

    def total(self, values: Sequence[float]) -> list[float]:
        """Each value summed over all processes."""
        ...

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Sum gradients over all processes in place; one that is missing counts as zero and is filled in."""
        ...

    def barrier(self) -> None:
        """Wait for all processes."""
        ...
