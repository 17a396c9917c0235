"""Which samples of a group are learned from: all, or only the best and the worst, and only if they stand out."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Extremes:
    """The best and the worst row of each of G groups, and whether each is kept; on the CPU."""

    best: Tensor  # [G] int64
    worst: Tensor  # [G] int64
    keep_best: Tensor  # [G] bool
    keep_worst: Tensor  # [G] bool

    @property
    def positive(self) -> Tensor:
        """The best rows that are kept, [P] int64."""
        return self.best[self.keep_best]

    @property
    def negative(self) -> Tensor:
        """The worst rows that are kept, [N] int64."""
        return self.worst[self.keep_worst]

    @property
    def rows(self) -> Tensor:
        """Every row that is kept, once, [K] int64 in rising order."""
        return torch.unique(torch.cat([self.positive, self.negative]))

    @property
    def pairs(self) -> Tensor:
        """(best, worst) of the groups that keep both, [P, 2] int64; a group whose rows are all equal has none."""
        both = self.keep_best & self.keep_worst & (self.best != self.worst)
        return torch.stack([self.best[both], self.worst[both]], dim=1)


def extremes(advantage: Tensor, group: Tensor, *, positive: float = -math.inf, negative: float = math.inf) -> Extremes:
    """The row of highest advantage of each group, if at least ``positive``, and the lowest, if below ``negative``.

    B2-DiffuRL (arXiv 2503.11240), released selection: a group gives no, one or two rows; the two tests are independent,
    the upper threshold belongs to what is kept and the lower does not. Of equal rows the first counts, so that the rows
    of one sample at several steps are picked together.

    Args:
        advantage: [M], not yet clipped.
        group: [M] int64; the groups come out in rising order of their number.
        positive: 0.5 in the released script; by default every best row is kept.
        negative: -0.5; by default every worst row is kept.

    Raises:
        ValueError: if shapes differ.
    """
    if advantage.dim() != 1 or advantage.shape != group.shape:
        raise ValueError(
            f"advantage and group must be equal vectors, got {tuple(advantage.shape)}, {tuple(group.shape)}"
        )
    values, group = advantage.detach().cpu(), group.cpu()
    best, worst = _first_of_groups(-values, group), _first_of_groups(values, group)
    return Extremes(best, worst, keep_best=values[best] >= positive, keep_worst=values[worst] < negative)


def _first_of_groups(key: Tensor, group: Tensor) -> Tensor:
    """The row of smallest key of every group, the first of equal ones, [G]."""
    order = torch.sort(key, stable=True).indices
    order = order[torch.sort(group[order], stable=True).indices]
    sorted_group = group[order]
    first = torch.ones_like(sorted_group, dtype=torch.bool)
    first[1:] = sorted_group[1:] != sorted_group[:-1]
    return order[first]
