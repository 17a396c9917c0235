"""A reward in closed form that can be a teacher: one linear layer over the pixels, whatever the prompt."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from difalign.core.protocols import NetworkReward
from difalign.core.types import Metadata, RewardOutput


class LinearReward:
    """``w . pixels``, frozen until someone trains it; says what it was asked."""

    differentiable = True

    def __init__(self, model: nn.Module, *, name: str = "linear") -> None:
        self.name = name
        self.model = model.eval().requires_grad_(False)
        self.sigmas: list[float | None] = []

    def with_model(self, model: nn.Module) -> LinearReward:
        return LinearReward(model, name=self.name)

    def to(self, device: str | torch.device) -> None:
        self.model.to(device)

    def score(
        self, media: Tensor, prompts: Sequence[str], *, metadata: Metadata | None = None, sigma: float | None = None
    ) -> RewardOutput:
        assert len(prompts) == media.shape[0]
        self.sigmas.append(sigma)
        return RewardOutput(self.model(media.flatten(1)).squeeze(1))


def linear_reward(weight: Tensor, *, name: str = "linear") -> LinearReward:
    """The reward ``weight . pixels``; weight is [pixels]."""
    layer = nn.Linear(weight.numel(), 1)
    layer.weight.data = weight[None].clone()
    layer.bias.data.zero_()
    return LinearReward(layer, name=name)


def check_learns(reward: NetworkReward, pixels: Tensor, prompts: Sequence[str]) -> None:
    """Another network of the same make can be trained with prompts read anew, and leaves the reward as it was."""
    before = reward.score(pixels, prompts).scores
    student = reward.with_model(copy.deepcopy(reward.model))
    assert torch.allclose(student.score(pixels, prompts).scores, before, atol=1e-6)  # kernels see other addresses
    student.model.requires_grad_(True)
    student.score(pixels, prompts).scores.square().sum().backward()
    moved = {name for name, p in student.model.named_parameters() if p.grad is not None and bool(p.grad.any())}
    assert any("text" in name for name in moved)
    assert any("vis" in name for name in moved)
    with torch.no_grad():
        for name, parameter in student.model.named_parameters():
            if "text" in name or "token" in name:
                parameter.mul_(1.5)
    after = student.score(pixels, prompts).scores.detach()
    assert not torch.allclose(after, before, atol=1e-4)
    assert torch.allclose(reward.with_model(student.model).score(pixels, prompts).scores, after, atol=1e-6)
    assert torch.equal(reward.score(pixels, prompts).scores, before)
