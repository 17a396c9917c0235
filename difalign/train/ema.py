"""A moving average of the trained weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import final

import torch
from torch import nn

from difalign.train.sharding import like


def ema_decay(step: int, *, max_decay: float = 0.9) -> float:
    """min((1 + s) / (10 + s), max_decay) after s optimiser steps (Flow-GRPO, released configuration: 0.9)."""
    return min((1 + step) / (10 + step), max_decay)


@final
class MovingAverage:
    """Averages parameters every few optimiser steps and lends the averages to the model."""

    def __init__(self, parameters: Sequence[nn.Parameter], *, max_decay: float, every: int) -> None:
        self._parameters = list(parameters)
        self._shadow = [parameter.detach().clone() for parameter in self._parameters]
        self._max_decay = max_decay
        self._every = every
        self._steps = 0

    @property
    def taken(self) -> bool:
        """Whether there is an average yet; until then it holds the weights it began with."""
        return self._steps >= self._every

    @property
    def steps(self) -> int:
        """Optimiser steps counted so far."""
        return self._steps

    @property
    def values(self) -> tuple[torch.Tensor, ...]:
        """The averages themselves, in the order of the parameters."""
        return tuple(self._shadow)

    def restore(self, values: Sequence[torch.Tensor], steps: int) -> None:
        """Go on from what ``values`` and ``steps`` once were."""
        for shadow, value in zip(self._shadow, values, strict=True):
            shadow.copy_(like(value, shadow))
        self._steps = steps

    @torch.no_grad()
    def update(self) -> None:
        """Count one optimiser step; average at every ``every``-th."""
        step, self._steps = self._steps, self._steps + 1
        if (step + 1) % self._every:
            return
        weight = 1.0 - ema_decay(step, max_decay=self._max_decay)
        for shadow, parameter in zip(self._shadow, self._parameters, strict=True):
            shadow.lerp_(parameter.detach(), weight)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the model holds the averages; afterwards its own weights again, bit for bit."""
        own = [parameter.detach().clone() for parameter in self._parameters]
        self._copy(self._shadow)
        try:
            yield
        finally:
            self._copy(own)

    @torch.no_grad()
    def _copy(self, source: Sequence[torch.Tensor]) -> None:
        for parameter, value in zip(self._parameters, source, strict=True):
            parameter.copy_(value)
