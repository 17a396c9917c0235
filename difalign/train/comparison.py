"""Which rewards a reward is compared with: its group's, the whole rollout's, or what is kept of its prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch import Tensor

from difalign.core.config import AdvantageConfig
from difalign.objective.advantages import (
    Advantages,
    Moments,
    group_advantages,
    moments,
    reward_std,
    standardised_advantages,
)
from difalign.objective.prompt_history import PromptHistory
from difalign.train.collector import Batch
from difalign.train.runtime import Runtime

_PromptRewards = tuple[int, str, list[float]]  # (update, prompt, its rewards), in the order they are to be kept


@final
class Comparison:
    """Turns the rewards of a rollout into advantages, the same on any number of processes."""

    def __init__(self, options: AdvantageConfig, runtime: Runtime) -> None:
        self._options = options
        self._runtime = runtime
        history = options.history
        self._history = PromptHistory(buffer_size=history.buffer_size, min_count=history.min_count)

    @property
    def prompt_rewards(self) -> dict[str, list[float]]:
        """What is kept of every prompt: the state to save, equal on all processes."""
        return self._history.rewards

    def restore(self, prompt_rewards: Mapping[str, Sequence[float]]) -> None:
        """Go on from kept rewards."""
        self._history.restore(prompt_rewards)

    def advantages(self, batches: Sequence[Batch]) -> list[Advantages]:
        """The advantages of every edge of the batches of one rollout; to be called by all processes."""
        compare = {
            "group": self._within_groups,
            "rollout": self._with_the_rollout,
            "prompt_history": self._with_the_history,
        }
        return compare[self._options.statistics](batches)

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
                clip=options.clip,
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
        compared = []
        for batch in batches:
            measures = [self._history.measure(p, otherwise=whole, ddof=self._options.ddof) for p in batch.prompts]
            root = batch.scored.trajectories.root
            compared.append(self._against(batch, batch.prompt_index.to(root.device)[root], measures))
        return compared

    def _against(self, batch: Batch, group: Tensor, measures: Sequence[Moments]) -> Advantages:
        options = self._options
        return standardised_advantages(batch.scored.edge_reward, group, measures, eps=options.eps, clip=options.clip)

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
