"""Which rewards a reward is compared with: its group's, the rollout's, or what is kept of its prompt."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import final

import torch
from torch import Tensor

from difalign.core.config import ObjectiveConfig
from difalign.objective.advantages import (
    Advantages,
    Moments,
    among_scored,
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

_NOTHING = Moments(0, 0.0, 0.0)  # of a prompt without a reward, which nothing is measured against
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
        chosen, group = self._options.selection, batch.scored.group
        if chosen is None and not self._paired:
            return None
        rows = (~batch.scored.edge_reward.isnan()).nonzero().flatten()
        if chosen is None:
            found = extremes(advantage[rows], group[rows])
        else:
            found = extremes(advantage[rows], group[rows], positive=chosen.positive, negative=chosen.negative)
        of_all = rows.cpu()
        return replace(found, best=of_all[found.best], worst=of_all[found.worst])

    def _within_groups(self, batches: Sequence[Batch]) -> list[Advantages]:
        """By the whole reward; or by every part of it that is compared by itself, whose advantages are weighted."""
        whole = self._grouped(batches, [batch.scored.edge_reward for batch in batches])
        weights = [weight for weight, _ in batches[0].parts]
        if not weights:
            return whole
        parts = [self._grouped(batches, [batch.parts[k][1] for batch in batches]) for k in range(len(weights))]
        return [
            replace(
                found,
                advantage=torch.stack(
                    [weight * part[i].advantage for weight, part in zip(weights, parts, strict=True)]
                ).sum(dim=0),
                zero_variance=torch.stack([part[i].zero_variance for part in parts]).all(dim=0),
            )
            for i, found in enumerate(whole)
        ]

    def _grouped(self, batches: Sequence[Batch], rewards: Sequence[Tensor]) -> list[Advantages]:
        """Groups never leave a process; a global spread is over everything gathered."""
        options, spread = self._options, None
        if options.std == "global":
            local = [reward for reward in torch.cat(list(rewards)).tolist() if not math.isnan(reward)]
            spread = reward_std(torch.tensor(self._runtime.gather(local)), ddof=options.ddof)
        compare = partial(group_advantages, std=options.std, ddof=options.ddof, eps=options.eps, global_std=spread)
        return [
            among_scored(of_edges, batch.scored.group, compare)
            for batch, of_edges in zip(batches, rewards, strict=True)
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
            scored = set(of_edge[~batch.scored.edge_reward.isnan()].tolist())
            measures = [
                measure(prompt) if i in scored else Moments(0, 0.0, 0.0) for i, prompt in enumerate(batch.prompts)
            ]
            compared.append(self._against(batch, of_edge, measures))
        return compared

    def _against(self, batch: Batch, group: Tensor, measures: Sequence[Moments]) -> Advantages:
        compare = partial(standardised_advantages, measures=measures, eps=self._options.eps)
        return among_scored(batch.scored.edge_reward, group, compare)

    def _moments(self, gathered: Sequence[_PromptRewards]) -> Moments:
        return moments(torch.tensor([r for _, _, rewards in gathered for r in rewards]), ddof=self._options.ddof)

    def _gathered(self, batches: Sequence[Batch]) -> list[_PromptRewards]:
        """The rewards of all samples of all processes, in an order that does not depend on how many there are."""
        local: list[_PromptRewards] = []
        for update, batch in enumerate(batches):
            of_prompt: dict[int, list[float]] = {}
            prompts = batch.prompt_index[batch.scored.trajectories.final_root.cpu()].tolist()
            for prompt, reward in zip(prompts, batch.rewards["total"].tolist(), strict=True):
                if math.isnan(reward):
                    continue
                of_prompt.setdefault(prompt, []).append(reward)
            local += [(update, batch.prompts[prompt], rewards) for prompt, rewards in of_prompt.items()]
        return sorted(self._runtime.gather(local))
