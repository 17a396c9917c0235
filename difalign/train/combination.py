"""How the rewards of a rollout become one: what can be added sample by sample, and what needs the others to compare."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from difalign.core.config import RunConfig
from difalign.core.config_rewards import RewardConfig
from difalign.objective.reward_scales import RunningMoments, prompt_ranks, prompt_scores
from difalign.train.runtime import Runtime
from difalign.train.scoring import Media


@dataclass(frozen=True, slots=True)
class Combined:
    """The reward of every sample of a batch, NaN where it has none."""

    total: Tensor  # [L] float32; rewards of their own group count in it with their place in their prompt
    parts: tuple[tuple[float, Tensor], ...] = ()  # (weight, [L]): what is compared by itself, if anything is


@final
class Combination:
    """The weighted sum in the units that the configuration asks for; keeps the running ones."""

    def __init__(self, config: RunConfig, runtime: Runtime) -> None:
        self._rewards: Mapping[str, RewardConfig] = config.rewards
        self._eps = config.objective.advantage.eps
        self._runtime = runtime
        kinds = {name: reward.scale.kind for name, reward in config.rewards.items()}
        self._plain = set(kinds.values()) <= {"none", "fixed"}
        self._running = {name: RunningMoments() for name, kind in kinds.items() if kind == "running"}

    @property
    def moments(self) -> dict[str, list[float]]:
        """Of the running units: the state to save, equal on all processes."""
        return {name: running.state() for name, running in self._running.items()}

    def restore(self, moments: Mapping[str, Sequence[float]]) -> None:
        """Go on from saved moments."""
        for name, running in self._running.items():
            running.count, running.mean, running.squares = moments.get(name, (0.0, 0.0, 0.0))

    def combine(self, media: Sequence[Media], prompts: Sequence[Tensor]) -> list[Combined]:
        """The rewards of the batches of one rollout; to be called by all processes.

        Args:
            media: of each batch.
            prompts: of each batch the prompt of every sample, [L] int64.
        """
        if self._plain:
            return [Combined(each.scores) for each in media]
        for name, running in self._running.items():
            mine = [score for each in media for score in each.components[name].tolist() if not math.isnan(score)]
            running.add(self._runtime.gather(mine))
        return [self._combined(each, prompt) for each, prompt in zip(media, prompts, strict=True)]

    def _combined(self, media: Media, prompt: Tensor) -> Combined:
        base = torch.zeros_like(media.scores)
        total, parts = base, []
        for name, reward in self._rewards.items():
            raw = media.components[name]
            if not reward.weight:
                continue
            if reward.scale.kind == "group":
                parts.append((reward.weight, raw))
                total = total + reward.weight * prompt_scores(raw, prompt, eps=self._eps)
                continue
            term = reward.weight * self._in_its_unit(name, reward, media, prompt)
            base, total = base + term, total + term
        for name, reward in self._rewards.items():
            if reward.gate is not None:
                shut = media.components[name] < reward.gate.at_least
                total = torch.where(shut, reward.gate.otherwise, total)
        missing = media.scores.isnan()
        if parts and any(reward.weight and reward.scale.kind != "group" for reward in self._rewards.values()):
            parts.append((1.0, base))
        return Combined(
            total.masked_fill(missing, torch.nan),
            tuple((weight, values.masked_fill(missing, torch.nan)) for weight, values in parts),
        )

    def _in_its_unit(self, name: str, reward: RewardConfig, media: Media, prompt: Tensor) -> Tensor:
        raw = media.components[name]
        units = {
            "none": lambda: raw,
            "fixed": lambda: media.components[f"{name}/scaled"],
            "running": lambda: self._running[name].scaled(raw),
            "rank": lambda: prompt_ranks(raw, prompt),
        }
        return units[reward.scale.kind]()
