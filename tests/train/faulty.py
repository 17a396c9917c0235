"""Policies in which something goes wrong, at the forwards in training that a test names."""

from __future__ import annotations

from collections.abc import Container

import torch
from torch import Tensor

from tests.toys import ElementwisePolicy


class Faulty(ElementwisePolicy):
    """The toy's policy; ``at`` says which of its forwards with gradient are faulty, counted from 0."""

    def __init__(self, at: Container[int]) -> None:
        super().__init__()
        self.at = at
        self.seen = -1

    def broken(self) -> bool:
        self.seen += torch.is_grad_enabled()
        return torch.is_grad_enabled() and self.seen in self.at


class LossBreaks(Faulty):
    """Overflows."""

    def forward(self, x: Tensor, t: Tensor, offset: Tensor) -> Tensor:
        broken = self.broken()
        return super().forward(x, t, offset) * (float("inf") if broken else 1.0)


class GradientBreaks(Faulty):
    """Finite values with an infinite slope: the root of a zero."""

    def forward(self, x: Tensor, t: Tensor, offset: Tensor) -> Tensor:
        broken = self.broken()
        values = super().forward(x, t, offset)
        return values + (self.shift - self.shift.detach()).sqrt() if broken else values
