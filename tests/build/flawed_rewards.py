"""Rewards that break what their cards say, one way each."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from difalign.core.types import RewardOutput

CALLS = itertools.count()


def bright(media: Tensor, prompts: Sequence[str]) -> Tensor:
    """Mean brightness; right in every way."""
    return media.mean(dim=(1, 2, 3))


def wordy(media: Tensor, prompts: Sequence[str], *, strength: float = 1.0) -> Tensor:
    """Reads the prompt's length."""
    return bright(media, prompts) + strength * torch.tensor([len(prompt) for prompt in prompts])


def relative(media: Tensor, prompts: Sequence[str]) -> Tensor:
    """Compares with its batch mates."""
    return bright(media, prompts) - bright(media, prompts).mean()


def fickle(media: Tensor, prompts: Sequence[str]) -> Tensor:
    """Says something else every time."""
    return bright(media, prompts) + next(CALLS)


def silent(media: Tensor, prompts: Sequence[str]) -> Tensor:
    """Has no gradient."""
    return bright(media.detach(), prompts)


def flat(media: Tensor, prompts: Sequence[str]) -> Tensor:
    """Has a gradient of zero."""
    return 0.0 * bright(media, prompts)


def leaking(media: Tensor, prompts: Sequence[str]) -> Tensor:
    """Lets a score's gradient reach other pictures, though its value does not depend on them."""
    mean = bright(media, prompts).mean()
    return bright(media, prompts) + (mean - mean.detach())


def short(media: Tensor, prompts: Sequence[str]) -> Tensor:
    """Gives one score too few."""
    return bright(media, prompts)[1:]


def failing(media: Tensor, prompts: Sequence[str]) -> RewardOutput:
    """Cannot score the first picture."""
    scores = bright(media, prompts)
    scores[0] = torch.nan
    return RewardOutput(scores, valid=torch.isfinite(scores), errors={0: "too dark"})


def refusing(media: Tensor, prompts: Sequence[str]) -> Tensor:
    """Refuses everything."""
    raise ValueError("no")


class Brightness:
    """Mean brightness as a class of another package."""

    name = "brightness"
    differentiable = True

    def __init__(self, *, factor: float = 2.0, device: str = "cpu") -> None:
        self.factor = factor

    def score(self, media: Tensor, prompts: Sequence[str], *, metadata: object = None, sigma: object = None):
        return RewardOutput(self.factor * bright(media, prompts))


NUMBER = 3
