"""The moving average: its decay, its recursion, and that it gives the weights back."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from difalign.train.ema import MovingAverage, ema_decay


@pytest.mark.golden
@pytest.mark.parametrize(
    ("step", "decay"), [(0, 0.1), (7, 8 / 17), (15, 16 / 25), (71, 72 / 81), (80, 0.9), (79, 80 / 89), (500, 0.9)]
)
def test_decay_of_the_released_configuration(step, decay) -> None:
    assert ema_decay(step) == pytest.approx(decay, abs=1e-12)


def test_average_follows_the_recursion_at_every_eighth_step() -> None:
    weight = nn.Parameter(torch.zeros(3))
    average = MovingAverage([weight], max_decay=0.9, every=8)
    expected = torch.zeros(3)
    for step in range(100):
        with torch.no_grad():
            weight.add_(torch.tensor([1.0, -2.0, 0.5]))
        average.update()
        if (step + 1) % 8 == 0:
            decay = min((1 + step) / (10 + step), 0.9)
            expected = decay * expected + (1 - decay) * weight.detach()
    with average.applied():
        torch.testing.assert_close(weight.detach(), expected)
        assert not torch.equal(weight.detach(), torch.tensor([100.0, -200.0, 50.0]))


def test_own_weights_come_back_bit_for_bit_even_after_an_error() -> None:
    weight = nn.Parameter(torch.randn(50, generator=torch.Generator().manual_seed(0)))
    average = MovingAverage([weight], max_decay=0.9, every=1)
    with torch.no_grad():
        weight.mul_(1.37)
    average.update()
    own = weight.detach().clone()
    seen: list[torch.Tensor] = []

    def fail() -> None:
        seen.append(weight.detach().clone())
        raise KeyError

    with pytest.raises(KeyError), average.applied():
        fail()
    assert not torch.equal(seen[0], own)
    assert torch.equal(weight, own)
