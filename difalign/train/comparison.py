"""Which rewards a reward is compared with: its group's, the rollout's, or what is kept of its prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import final

import torch
from torch import Tensor

from difalign.core.config import ObjectiveConfig
from difalign.objective.advantages import (
    Advantages,
    Moments,
    group_advantages,
    moments,
    reward_std,
    scaled_advantage,
    standardised_advantages,
)
from difalign.objective.prompt_history import PromptHistory
from difalign.objective.selection import Extremes, extremes
from difalign.objective.stage_history import StageHistory, StageRewards
from difalign.train.collector import Batch
from difalign.train.runtime import Runtime

_PromptRewards = tuple[int, str, list[float]]  # (update, prompt, its rewards), in the order they are to be kept


@final
class Comparison:
    """Turns the rewards of a rollout into advantages, the same on any number of processes."""

    def __init__(self, objective: ObjectiveConfig, runtime: Runtime) -> None:
        self._options = objective.advantage
        self._paired = objective.surrogate == "pair"
        self._runtime = runtime
        history = self._options.history
        self._history = PromptHistory(buffer_size=history.buffer_size, min_count=history.min_count)
        self._stages = StageHistory(stages=history.stages)

    @property
    def prompt_rewards(self) -> list[dict[str, list[float]]]:
        """What is kept of every prompt, oldest rollout first: the state to save, equal on all processes."""
        if self._options.statistics == "stage_history":
            return self._stages.rewards
        return [self._history.rewards] if self._history.rewards else []

    def restore(self, prompt_rewards: Sequence[StageRewards]) -> None:
        """Go on from kept rewards."""
        if self._options.statistics == "stage_history":
            self._stages.restore(prompt_rewards)
        else:
            self._history.restore(prompt_rewards[0] if prompt_rewards else {})

    def advantages(self, batches: Sequence[Batch]) -> list[Advantages]:
        """The advantages of every edge of the batches of one rollout; to be called by all processes."""
        compare = {
            "group": self._within_groups,
            "rollout": self._with_the_rollout,
            "prompt_history": self._with_the_history,
            "stage_history": self._with_the_stages,
        }
        found = compare[self._options.statistics](batches)
        return [self._shaped(batch, advantages) for batch, advantages in zip(batches, found, strict=True)]

    def _shaped(self, batch: Batch, advantages: Advantages) -> Advantages:
        """Clipped and scaled; what is selected is chosen before, as a clip makes ties."""
        options = self._options
        return replace(
            advantages,
            advantage=scaled_advantage(
                advantages.advantage,
                clip=options.clip,
                positive_scale=options.positive_scale,
                negative_scale=options.negative_scale,
            ),
            extremes=self._extremes(batch, advantages.advantage),
        )

    def _extremes(self, batch: Batch, advantage: Tensor) -> Extremes | None:
        chosen = self._options.selection
        if chosen is not None:
            return extremes(advantage, batch.scored.group, positive=chosen.positive, negative=chosen.negative)
        return extremes(advantage, batch.scored.group) if self._paired else None

    def _within_groups(self, batches: Sequence[Batch]) -> list[Advantages]:
        """Groups never leave a process; a global spread is over everything gathered."""
        options, spread = self._options, None
        if options.std == "global":
            local = torch.cat([batch.scored.edge_reward for batch in batches]).tolist()
            spread = reward_std(torch.tensor(self._runtime.gather(local)), ddof=options.ddof)
        return [
            group_advantages(
                batch.scored.edge_reward,
                batch.scored.group,
                std=options.std,
                ddof=options.ddof,
                eps=options.eps,
                global_std=spread,
            )
            for batch in batches
        ]

    def _with_the_rollout(self, batches: Sequence[Batch]) -> list[Advantages]:
        whole = self._moments(self._gathered(batches))
        return [self._against(batch, torch.zeros_like(batch.scored.group), [whole]) for batch in batches]

    def _with_the_history(self, batches: Sequence[Batch]) -> list[Advantages]:
        gathered = self._gathered(batches)
        whole = self._moments(gathered)
        for _, prompt, rewards in gathered:
            self._history.add(prompt, rewards)
        return self._against_prompts(
            batches, lambda prompt: self._history.measure(prompt, otherwise=whole, ddof=self._options.ddof)
        )

    def _with_the_stages(self, batches: Sequence[Batch]) -> list[Advantages]:
        stage: dict[str, list[float]] = {}
        for _, prompt, rewards in self._gathered(batches):
            stage.setdefault(prompt, []).extend(rewards)
        self._stages.add(stage)
        return self._against_prompts(batches, lambda prompt: self._stages.measure(prompt, ddof=self._options.ddof))

    def _against_prompts(self, batches: Sequence[Batch], measure: Callable[[str], Moments]) -> list[Advantages]:
        compared = []
        for batch in batches:
            root = batch.scored.trajectories.root
            of_edge = batch.prompt_index.to(root.device)[root]
            compared.append(self._against(batch, of_edge, [measure(prompt) for prompt in batch.prompts]))
        return compared

    def _against(self, batch: Batch, group: Tensor, measures: Sequence[Moments]) -> Advantages:
        return standardised_advantages(batch.scored.edge_reward, group, measures, eps=self._options.eps)

    def _moments(self, gathered: Sequence[_PromptRewards]) -> Moments:
        return moments(torch.tensor([r for _, _, rewards in gathered for r in rewards]), ddof=self._options.ddof)

    def _gathered(self, batches: Sequence[Batch]) -> list[_PromptRewards]:
        """The rewards of all samples of all processes, in an order that does not depend on how many there are."""
        local: list[_PromptRewards] = []
        for update, batch in enumerate(batches):
            of_prompt: dict[int, list[float]] = {}
            prompts = batch.prompt_index[batch.scored.trajectories.final_root.cpu()].tolist()
            for prompt, reward in zip(prompts, batch.rewards["total"].tolist(), strict=True):
                of_prompt.setdefault(prompt, []).append(reward)
            local += [(update, batch.prompts[prompt], rewards) for prompt, rewards in of_prompt.items()]
        return sorted(self._runtime.gather(local))
