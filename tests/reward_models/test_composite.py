"""The weighted sum: exact, every part in view, and as differentiable as its parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from difalign.core.protocols import RewardModel
from difalign.core.types import Metadata, RewardOutput
from difalign.reward_models.composite import CompositeReward

PROMPTS = ["a", "bb", "ccc"]


@dataclass
class Brightness:
    """The mean pixel, with half of it as a component; remembers what it was called with."""

    name: str = "brightness"
    differentiable: bool = True
    calls: list[tuple[int, float | None]] = field(default_factory=list)  # rows, sigma

    def score(
        self, media: Tensor, prompts: Sequence[str], *, metadata: Metadata | None = None, sigma: float | None = None
    ) -> RewardOutput:
        self.calls.append((len(prompts), sigma))
        mean = media.flatten(1).mean(dim=1)
        return RewardOutput(mean, {"half": mean / 2})


@dataclass(frozen=True)
class Length:
    """Letters of the prompt, in float64 as a careless reward may give them."""

    name: str = "length"
    differentiable: bool = False

    def score(
        self, media: Tensor, prompts: Sequence[str], *, metadata: Metadata | None = None, sigma: float | None = None
    ) -> RewardOutput:
        return RewardOutput(torch.tensor([len(prompt) for prompt in prompts], dtype=torch.float64))


def media() -> Tensor:
    return torch.tensor([0.0, 0.25, 1.0])[:, None, None, None].expand(3, 3, 2, 2).clone()


def test_sum_is_exact_and_parts_are_logged_raw() -> None:
    reward = CompositeReward.weighted({"bright": (Brightness(), 2.0), "long": (Length(), -0.5)})
    output = reward.score(media(), PROMPTS)
    assert output.scores.tolist() == [0.0 * 2 - 0.5, 0.25 * 2 - 1.0, 1.0 * 2 - 1.5]
    assert output.scores.dtype == torch.float32
    assert {name: part.tolist() for name, part in output.components.items()} == {
        "bright": [0.0, 0.25, 1.0],
        "bright/half": [0.0, 0.125, 0.5],
        "long": [1.0, 2.0, 3.0],
    }


def test_sum_is_linear_in_the_weights() -> None:
    source = torch.Generator().manual_seed(0)
    pixels = torch.rand(3, 3, 4, 4, generator=source)

    def total(first: float, second: float) -> Tensor:
        return (
            CompositeReward.weighted({"a": (Brightness(), first), "b": (Length(), second)})
            .score(pixels, PROMPTS)
            .scores
        )

    torch.testing.assert_close(total(1.5, -2.0), 1.5 * total(1.0, 0.0) - 2.0 * total(0.0, 1.0))


def test_one_reward_of_weight_one_is_itself() -> None:
    alone = Brightness().score(media(), PROMPTS)
    summed = CompositeReward.weighted({"bright": (Brightness(), 1.0)}).score(media(), PROMPTS)
    assert torch.equal(summed.scores, alone.scores)


def test_weight_zero_is_scored_and_shown_but_does_not_count() -> None:
    output = CompositeReward.weighted({"bright": (Brightness(), 1.0), "long": (Length(), 0.0)}).score(media(), PROMPTS)
    assert output.scores.tolist() == [0.0, 0.25, 1.0]
    assert output.components["long"].tolist() == [1.0, 2.0, 3.0]


def test_two_of_a_kind_keep_their_own_names() -> None:
    output = CompositeReward.weighted({"x": (Brightness(), 1.0), "y": (Brightness(), 3.0)}).score(media(), PROMPTS)
    assert output.scores.tolist() == [0.0, 1.0, 4.0]
    assert set(output.components) == {"x", "x/half", "y", "y/half"}


def test_every_part_sees_the_noise_level_once() -> None:
    bright = Brightness()
    reward = CompositeReward.weighted({"bright": (bright, 1.0)})
    reward.score(media(), PROMPTS, sigma=0.3)
    reward.score(media()[:1], PROMPTS[:1])
    assert bright.calls == [(3, 0.3), (1, None)]


def test_gradient_is_the_weighted_sum_of_gradients() -> None:
    pixels = media().requires_grad_()
    reward = CompositeReward.weighted({"x": (Brightness(), 2.0), "y": (Brightness(), -0.5)})
    (gradient,) = torch.autograd.grad(reward.score(pixels, PROMPTS).scores.sum(), pixels)
    torch.testing.assert_close(gradient, torch.full_like(gradient, (2.0 - 0.5) / 12))


@pytest.mark.parametrize(("parts", "expected"), [((True, True), True), ((True, False), False), ((False,), False)])
def test_is_differentiable_if_every_part_is(parts, expected) -> None:
    rewards = {str(i): (Brightness(differentiable=part), 1.0) for i, part in enumerate(parts)}
    assert CompositeReward.weighted(rewards).differentiable is expected


def test_is_a_reward_itself_and_nests() -> None:
    inner = CompositeReward.weighted({"bright": (Brightness(), 2.0)})
    assert isinstance(inner, RewardModel)
    output = CompositeReward.weighted({"inner": (inner, 3.0), "long": (Length(), 1.0)}).score(media(), PROMPTS)
    assert output.scores.tolist() == [1.0, 3.5, 9.0]
    assert output.components["inner/bright/half"].tolist() == [0.0, 0.125, 0.5]


def test_refuses_nothing_at_all() -> None:
    with pytest.raises(ValueError, match=r"at least one reward; name one under 'rewards:'"):
        CompositeReward.weighted({})


def test_refuses_a_part_called_as_the_sum() -> None:
    """Its own score would be recorded in the place of the weighted sum."""
    with pytest.raises(ValueError, match=r"'total' is the name of the weighted sum; .* card: NAME"):
        CompositeReward.weighted({"total": (Brightness(), 2.0)})
