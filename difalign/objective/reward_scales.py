"""Units in which rewards can be added up: measured against all that came before, or against the prompt's others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

_NO_SPREAD = 1e-12


@final
@dataclass(slots=True)
class RunningMoments:
    """Mean and std of every score so far, in float64; several scores at a time (Chan, Golub and LeVeque 1983)."""

    count: float = 0.0
    mean: float = 0.0
    squares: float = field(default=0.0)  # sum of (score - mean)^2

    def add(self, scores: Sequence[float]) -> None:
        """Take scores in; sorted first, so that it does not matter which process had which."""
        if not scores:
            return
        values = torch.tensor(sorted(scores), dtype=torch.float64)
        count, mean = values.numel(), float(values.mean())
        total, apart = self.count + count, mean - self.mean
        self.squares += float((values - mean).square().sum()) + apart**2 * self.count * count / total
        self.mean += apart * count / total
        self.count = total

    @property
    def std(self) -> float:
        """Over all scores, 0 before there are two different ones."""
        return (self.squares / self.count) ** 0.5 if self.count else 0.0

    def scaled(self, scores: Tensor) -> Tensor:
        """(score - mean) / std, [N] float32; only centred as long as there is no spread."""
        divisor = self.std if self.std > _NO_SPREAD else 1.0
        return ((scores.double() - self.mean) / divisor).float()

    def state(self) -> list[float]:
        """Numbers to save."""
        return [self.count, self.mean, self.squares]


def prompt_ranks(scores: Tensor, prompt: Tensor) -> Tensor:
    """The place of every score among those of its prompt: 0 the lowest, 1 the highest, [N] float32.

    Equal scores share the mean of their places; one that is alone has 0.5. NaN has no place, and takes none.

    Args:
        scores: [N].
        prompt: [N] int64.
    """
    ranks = torch.full_like(scores, torch.nan, dtype=torch.float32)
    for rows in _rows_of_prompts(scores, prompt):
        values = scores[rows]
        below = (values[:, None] > values[None, :]).sum(dim=1)
        equal = (values[:, None] == values[None, :]).sum(dim=1)
        ranks[rows] = (below + (equal - 1) / 2).float() / (len(rows) - 1) if len(rows) > 1 else 0.5
    return ranks


def prompt_scores(scores: Tensor, prompt: Tensor, *, eps: float) -> Tensor:
    """(score - mean) / (std + eps) among those of its prompt, [N] float32; NaN stays, and does not count."""
    standard = torch.full_like(scores, torch.nan, dtype=torch.float32)
    for rows in _rows_of_prompts(scores, prompt):
        values = scores[rows].double()
        standard[rows] = ((values - values.mean()) / (values.std(correction=0) + eps)).float()
    return standard


def _rows_of_prompts(scores: Tensor, prompt: Tensor) -> list[Tensor]:
    """The rows that have a score, prompt by prompt."""
    scored = ~scores.isnan()
    return [((prompt == each) & scored).nonzero().flatten() for each in prompt[scored].unique()]
