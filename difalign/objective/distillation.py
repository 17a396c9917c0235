"""A reward learns to read noisy estimates from itself: losses, order of levels, and the decay within a level.

TTSnap (arXiv 2511.22242) fits a copy of a reward on estimates of x0 at noise sigma to the reward's own raw score of
the same trajectory's finished sample, one level after the other from the cleanest to the noisiest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True)
class DistillationLoss:
    """``error_weight * squared error + ranking_weight * ranking loss within prompts``."""

    error_weight: float = 1.0  # TTSnap's released code
    ranking_weight: float = 0.0  # there as well: the ranking loss is an option that is off
    temperature: float = 0.5  # of the ranking loss, in the unit of the score; the released code

    def __post_init__(self) -> None:
        weights = (self.error_weight, self.ranking_weight)
        if any(not math.isfinite(weight) or weight < 0 for weight in weights) or not any(weights):
            raise ValueError(
                f"error_weight = {self.error_weight}, ranking_weight = {self.ranking_weight}: give numbers of at "
                "least 0, one of them above it"
            )
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(f"temperature = {self.temperature}: give a number above 0, such as the spread of scores")

    def __call__(self, student: Tensor, teacher: Tensor, prompt: Tensor) -> Tensor:
        """The loss of a batch, a scalar.

        Args:
            student: scores of noisy estimates, [N], with gradient.
            teacher: raw scores of the finished samples, [N].
            prompt: which rows belong together, [N] int64.
        """
        loss = self.error_weight * squared_error(student, teacher).mean()
        if self.ranking_weight > 0:
            loss = loss + self.ranking_weight * ranking_loss(student, teacher, prompt, temperature=self.temperature)
        return loss


def squared_error(student: Tensor, teacher: Tensor) -> Tensor:
    """(student - teacher)^2 of every row, [N]; the target is a raw score, standardised neither by prompt nor at all."""
    assert student.shape == teacher.shape, (student.shape, teacher.shape)
    return (student - teacher).square()


def ranking_loss(student: Tensor, teacher: Tensor, prompt: Tensor, *, temperature: float) -> Tensor:
    """The Bradley-Terry loss of all pairs of a prompt: mean of -log sigmoid((s_better - s_worse) / temperature).

    Better is what the teacher scored higher; pairs it scored equally say nothing and do not count.

    Returns:
        A scalar; 0 where there is no pair. Its gradient within a prompt sums to 0: it orders and does not shift.
    """
    pairs = (prompt[:, None] == prompt[None, :]) & (teacher[:, None] > teacher[None, :])
    margins = (student[:, None] - student[None, :])[pairs]
    return F.softplus(-margins / temperature).sum() / max(1, margins.numel())


def check_curriculum(sigmas: Sequence[float]) -> tuple[float, ...]:
    """The levels, if they go from the cleanest to the noisiest.

    Raises:
        ValueError: if there is none, one is no noise, or they do not rise strictly.
    """
    levels = tuple(float(sigma) for sigma in sigmas)
    if not levels:
        raise ValueError("the curriculum is empty: name at least one sigma, such as 0.3")
    if any(not math.isfinite(sigma) or sigma <= 0 for sigma in levels):
        raise ValueError(f"curriculum {_list(levels)}: every sigma must be above 0; at 0 the teacher itself scores")
    if any(noisier <= cleaner for cleaner, noisier in pairwise(levels)):
        raise ValueError(
            f"curriculum {_list(levels)}: levels go from clean to noisy, each once; "
            f"write {_list(tuple(sorted(set(levels))))}"
        )
    return levels


def decayed_rate(step: int, *, steps: int, first: float, last_share: float) -> float:
    """The learning rate of one step of a level: linear from ``first`` to ``last_share * first`` at its last step.

    Args:
        step: from 0 to ``steps`` - 1.
        steps: of the level.
        first: the rate that every level begins with.
        last_share: what is left of it at the end; TTSnap's released configurations: 0.5.
    """
    assert 0 <= step < steps, (step, steps)
    done = step / (steps - 1) if steps > 1 else 0.0
    return first * (1 - (1 - last_share) * done)


def cosine_rate(step: int, *, steps: int, first: float, last_share: float) -> float:
    """As ``decayed_rate``, along half a period of the cosine (SGDR: arXiv 1608.03983, equation 5)."""
    assert 0 <= step < steps, (step, steps)
    done = step / (steps - 1) if steps > 1 else 0.0
    return first * (last_share + (1 - last_share) * (1 + math.cos(math.pi * done)) / 2)


class Rate(Protocol):
    """The learning rate of a step."""

    def __call__(self, step: int, *, steps: int, first: float, last_share: float) -> float:
        """See ``decayed_rate``."""
        ...


RATES: Mapping[str, Rate] = {"linear": decayed_rate, "cosine": cosine_rate}


def _list(levels: Sequence[float]) -> str:
    return ", ".join(f"{sigma:g}" for sigma in levels)
