"""Several rewards as one: a weighted sum that keeps every component in view."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from difalign.core.protocols import RewardModel
from difalign.core.types import Metadata, RewardOutput


@dataclass(frozen=True, slots=True)
class WeightedReward:
    """``sum_i weight_i * reward_i``; components are logged raw, under ``reward/component``."""

    rewards: Mapping[str, tuple[RewardModel, float]]
    name: str = "total"

    def __post_init__(self) -> None:
        if not self.rewards:
            raise ValueError("a run needs at least one reward; name one under 'rewards:', for instance verifier")
        if self.name in self.rewards:  # its score would be recorded in the place of the sum
            raise ValueError(
                f"a reward cannot be called {self.name!r}: {self.name!r} is the name of the weighted sum; "
                "give it another name under 'rewards:', with card: NAME"
            )

    @property
    def differentiable(self) -> bool:
        """Whether every part is."""
        return all(reward.differentiable for reward, _ in self.rewards.values())

    def score(
        self, media: Tensor, prompts: Sequence[str], *, metadata: Metadata | None = None, sigma: float | None = None
    ) -> RewardOutput:
        """The weighted sum of all rewards, [N]; raises what the parts raise."""
        components: dict[str, Tensor] = {}
        total: Tensor | None = None
        for name, (reward, weight) in self.rewards.items():
            output = reward.score(media, prompts, metadata=metadata, sigma=sigma)
            components[name] = output.scores
            components |= {f"{name}/{part}": value for part, value in output.components.items()}
            total = weight * output.scores if total is None else total + weight * output.scores
        assert isinstance(total, torch.Tensor)
        return RewardOutput(total.float(), components)
