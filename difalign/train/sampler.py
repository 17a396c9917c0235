"""Which prompts a rollout works on: the same for any number of processes."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from difalign.core.rng import generator


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


def split_groups(items: Sequence[int], *, rank: int, world: int) -> list[int]:
    """The whole groups of one process: counts differ by at most one, and no group is split."""
    return list(items[rank::world])
