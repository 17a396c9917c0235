"""The samples of a rollout: sampled, scored, and sorted into groups."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from difalign.core.config import RunConfig
from difalign.core.gaussian import LOG_PROBS
from difalign.core.prompts import Prompt
from difalign.core.protocols import Condition, Pipeline, RewardModel
from difalign.core.rng import row_seed
from difalign.core.types import NoiseGrid, Plan, Scored
from difalign.objective.diversity import pairwise_distance
from difalign.rollout.engine import rollout
from difalign.rollout.grouping import edge_rewards, group_ids
from difalign.train.runtime import Runtime
from difalign.train.sampler import Draw, number_draws, rollout_prompts, split_groups, uniform_prompts
from difalign.train.scoring import decode_and_score

PlanSchedule = Callable[[int], tuple[Plan, ...]]  # rollout index -> the plans it runs
Report = Callable[[str, int, int], None]  # (phase, done, total)


@dataclass(frozen=True, slots=True)
class Batch:
    """What one update is made from, on one process."""

    scored: Scored
    condition: Condition
    prompt_index: Tensor  # [R] the prompt of every root
    root_position: Tensor  # [R] int64, of every root among those of the update, over all processes
    prompts: tuple[str, ...]  # rows of condition
    rewards: Mapping[str, Tensor]  # name -> [L]
    distances: Tensor  # [G] between the samples of each prompt; empty if the run does not look


@final
class Collector:
    """Samples and scores the batches of a rollout, and counts what that took."""

    def __init__(
        self,
        pipeline: Pipeline,
        reward: RewardModel,
        prompts: Sequence[Prompt],
        *,
        plans: PlanSchedule,
        config: RunConfig,
        runtime: Runtime,
        grid: NoiseGrid,
    ) -> None:
        self.reward = reward
        self._pipeline = pipeline
        self._prompts = prompts
        self._plans = plans
        self._log_prob = LOG_PROBS[config.objective.log_prob]
        self._config = config
        self._runtime = runtime
        self._grid = grid
        self.forwards = 0  # of all processes
        self.reward_calls = 0  # likewise

    def collect(self, index: int, report: Report) -> list[Batch]:
        """The batches of rollout ``index``, one an update: this process's whole groups of each."""
        config = self._config
        draw = {"passes": rollout_prompts, "uniform": uniform_prompts}[config.sampling.draw]
        chosen = draw(
            len(self._prompts),
            updates=config.training.updates_per_rollout,
            prompts_per_update=config.sampling.prompts_per_update,
            seed=config.seed,
            rollout=index,
        )
        plans = self._plans(index)
        batches = []
        for draws in number_draws([[self._prompts[i].text for i in indices] for indices in chosen]):
            mine = split_groups(draws, rank=self._runtime.rank, world=self._runtime.world)
            batches.append(self._batch(mine, plans, index, report))
        forwards = sum(batch.scored.trajectories.forwards for batch in batches)
        leaves = sum(batch.scored.trajectories.final.shape[0] for batch in batches)
        totals = self._runtime.total([forwards, leaves])
        self.forwards += round(totals[0])
        self.reward_calls += round(totals[1])
        return batches

    def _batch(self, draws: Sequence[Draw], plans: tuple[Plan, ...], index: int, report: Report) -> Batch:
        sampling = self._config.sampling
        roots = self._config.roots_per_prompt
        texts = [draw.text for draw in draws]
        starts = [(draw, s) for draw in draws for s in range(roots)]
        condition = self._pipeline.encode(texts)
        prompt_index = torch.arange(len(texts)).repeat_interleave(roots)
        with self._runtime.autocast():
            walks = rollout(
                self._pipeline,
                plans,
                condition=condition,
                prompt_index=prompt_index,
                root_seeds=[
                    row_seed(self._config.seed, draw.text, draw.repeat * roots + s, index) for draw, s in starts
                ],
                grid=self._grid,
                micro_batch=sampling.micro_batch,
                storage_dtype=getattr(torch, sampling.storage_dtype),
                storage_device="cpu" if sampling.offload else None,
                log_prob=self._log_prob,
                keep_mean=self._config.objective.ratio == "ratio_norm",
                progress=lambda done, total: report("sampling", done, total),
            )
        report("scoring", 0, walks.final.shape[0])
        prompt_of_leaf = prompt_index[walks.final_root.cpu()]
        watched = self._config.guards.enabled and self._config.guards.min_diversity is not None
        media = decode_and_score(
            self._pipeline,
            self.reward,
            walks.final,
            [texts[p] for p in prompt_of_leaf.tolist()],
            micro_batch=sampling.micro_batch,
            keep_thumbnails=watched,
            progress=lambda done, total: report("scoring", done, total),
        )
        scored = Scored(
            trajectories=walks,
            rewards={"total": media.scores, **media.components},
            edge_reward=edge_rewards(media.scores, walks),
            group=group_ids(walks, prompt_index, by=self._config.objective.advantage.group_by),
        )
        small = media.thumbnails
        distances = torch.zeros(0) if small is None else pairwise_distance(small, prompt_of_leaf)
        position = torch.tensor([draw.position * roots + s for draw, s in starts])
        return Batch(scored, condition, prompt_index, position, tuple(texts), scored.rewards, distances)
