"""Which level of the curriculum each row of a batch is read at: the one in training, or an earlier one again."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from difalign.core.rng import generator


def replayed_levels(belong: Tensor, level: int, *, share: float, together: bool, key: tuple[int, ...]) -> Tensor:
    """The level of every row of a batch, [B] int64; ``floor(share * B)`` rows are of levels before this one.

    Earlier levels are drawn evenly, so that what was learnt at low noise is not forgotten at high noise.

    Args:
        belong: which prompt each row is of, [B] int64.
        level: the one in training, its place in the curriculum from 0; before the first there is none.
        share: of the batch, in [0, 1).
        together: deal in prompts in the place of rows, as a loss of pairs needs them.
        key: what the choice is a function of.
    """
    levels = torch.full(belong.shape, level)
    if level == 0 or share == 0:
        return levels
    source = generator("replay", *key)
    _, owner = belong.unique(return_inverse=True) if together else (belong, torch.arange(belong.numel()))
    owners = int(owner.max()) + 1
    again = torch.randperm(owners, generator=source)[: math.floor(share * owners)]
    of_owner = torch.full((owners,), level)
    of_owner[again] = torch.randint(level, again.shape, generator=source)
    return of_owner[owner]
