"""Which prompts a rollout works on: the same for any number of processes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from difalign.core.rng import generator

_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True)
class Draw:
    """One prompt of an update."""

    text: str
    position: int  # among the draws of the update, over all processes
    repeat: int  # how often the text was drawn before in the rollout; its noise must not be drawn twice


def uniform_prompts(
    num_prompts: int, *, updates: int, prompts_per_update: int, seed: int, rollout: int
) -> list[list[int]]:
    """Indices of the prompts of each update, each drawn uniformly with replacement (DDPO, B2-DiffuRL).

    A pure function of (seed, rollout), like ``rollout_prompts``.
    """
    drawn = torch.randint(num_prompts, (updates, prompts_per_update), generator=generator("prompt draw", seed, rollout))
    return drawn.tolist()


def number_draws(chosen: Sequence[Sequence[str]]) -> list[list[Draw]]:
    """The texts of each update with their places, and with how often each was drawn before in the rollout."""
    seen: Counter[str] = Counter()
    numbered: list[list[Draw]] = []
    for texts in chosen:
        numbered.append([])
        for position, text in enumerate(texts):
            numbered[-1].append(Draw(text, position, seen[text]))
            seen[text] += 1
    return numbered


def rollout_prompts(
    num_prompts: int, *, updates: int, prompts_per_update: int, seed: int, rollout: int
) -> list[list[int]]:
    """Indices of the prompts of each update of a rollout, distinct within the rollout.

    Prompts are drawn without replacement over a whole pass through the list, so that each is met once before any is
    met again. A pure function of (seed, rollout): nothing is prefetched and no process needs to ask another.

    Raises:
        ValueError: if a rollout needs more prompts than there are.
    """
    needed = updates * prompts_per_update
    if needed > num_prompts:
        raise ValueError(
            f"a rollout needs {needed} distinct prompts but the list has {num_prompts}; "
            "lower sampling.prompts_per_update or training.updates_per_rollout, or add prompts"
        )
    rollouts_per_pass = num_prompts // needed
    turn, place = divmod(rollout, rollouts_per_pass)
    order = torch.randperm(num_prompts, generator=generator("prompt order", seed, turn)).tolist()
    chosen = order[place * needed : (place + 1) * needed]
    return [chosen[u * prompts_per_update : (u + 1) * prompts_per_update] for u in range(updates)]


def split_groups(items: Sequence[_Item], *, rank: int, world: int) -> list[_Item]:
    """The whole groups of one process: counts differ by at most one, and no group is split."""
    return list(items[rank::world])
