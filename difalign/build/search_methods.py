"""The methods of ``difalign search`` by name. Another one is another entry; torch is imported when one is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from difalign.search.methods import Method
    from difalign.search.ranking import Ranking
    from difalign.search.schedule import Stage

_ROUNDS = 3  # own: of successive halving, as many as leave an eighth


@dataclass(frozen=True, slots=True)
class Ingredients:
    """What a method is made of."""

    num_steps: int
    stages: tuple[Stage, ...]
    ranking: Ranking  # of estimates
    final: Ranking  # of finished samples


@dataclass(frozen=True, slots=True)
class MethodEntry:
    """A method, and what it wants to be told."""

    make: Callable[[Ingredients], Method]
    takes_stages: bool
    looks: bool  # whether it scores estimates


def _best_of_n(given: Ingredients) -> Method:
    from difalign.search.methods import best_of_n

    return best_of_n(final=given.final)


def _pruned(given: Ingredients) -> Method:
    from difalign.search.methods import pruned

    return pruned(given.stages, ranking=given.ranking, final=given.final)


def _random(given: Ingredients) -> Method:
    from difalign.search.methods import random_pruning

    return random_pruning(given.stages, final=given.final)


def _halving(given: Ingredients) -> Method:
    """Three rounds from a quarter of the steps on; fewer where there is no room."""
    from difalign.search.methods import pruned
    from difalign.search.schedule import halving

    first = max(given.num_steps // 4 - 1, 0)
    rounds = max(min(_ROUNDS, given.num_steps - 1 - first), 1)
    stages = halving(given.num_steps, rounds=rounds, first_step=first)
    return pruned(stages, ranking=given.ranking, final=given.final)


METHODS: Mapping[str, MethodEntry] = MappingProxyType(
    {
        "best-of-n": MethodEntry(_best_of_n, takes_stages=False, looks=False),
        "pruned": MethodEntry(_pruned, takes_stages=True, looks=True),
        "random": MethodEntry(_random, takes_stages=True, looks=False),
        "successive-halving": MethodEntry(_halving, takes_stages=False, looks=True),
    }
)
