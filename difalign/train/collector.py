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
from difalign.core.types import NoiseGrid, Plan, Scored, Trajectories
from difalign.objective.diversity import pairwise_distance
from difalign.rollout.engine import rollout
from difalign.rollout.grouping import edge_rewards, group_ids
from difalign.train.combination import Combination, Combined
from difalign.train.runtime import Runtime
from difalign.train.sampler import Draw, number_draws, rollout_prompts, split_groups, uniform_prompts
from difalign.train.scoring import Media, Scoring, decode_and_submit

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
    rewards: Mapping[str, Tensor]  # name -> [L]; NaN where a sample has none
    parts: tuple[tuple[float, Tensor], ...]  # (weight, [M]): of the reward, what is compared by itself; empty = nothing
    distances: Tensor  # [G] between the samples of each prompt; empty if the run does not look


@dataclass(frozen=True, slots=True)
class _Sampled:
    """A batch whose scores are on their way."""

    walks: Trajectories
    condition: Condition
    prompt_index: Tensor  # [R]
    root_position: Tensor  # [R]
    texts: tuple[str, ...]
    scoring: Scoring

    @property
    def prompt_of_leaf(self) -> Tensor:
        return self.prompt_index[self.walks.final_root.cpu()]


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
        self._metadata = {prompt.text: prompt.metadata for prompt in prompts}
        self._log_prob = LOG_PROBS[config.objective.log_prob]
        self._config = config
        self._runtime = runtime
        self._grid = grid
        self.combination = Combination(config, runtime)
        self.forwards = 0  # of all processes
        self.reward_calls = 0  # likewise

    def collect(self, index: int, report: Report) -> list[Batch]:
        """The batches of rollout ``index``, one an update: this process's whole groups of each.

        A reward that is computed elsewhere scores one batch while the next is sampled.

        Raises:
            RuntimeError: if more samples are without a reward than the guard allows.
        """
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
        sampled = []
        for draws in number_draws([[self._prompts[i].text for i in indices] for indices in chosen]):
            mine = split_groups(draws, rank=self._runtime.rank, world=self._runtime.world)
            sampled.append(self._sample(mine, plans, index, report))
        media = [each.scoring.result() for each in sampled]
        self._check_failed(media, [each.scoring.prompts for each in sampled], index)
        combined = self.combination.combine(media, [each.prompt_of_leaf for each in sampled])
        batches = [self._batch(*each) for each in zip(sampled, media, combined, strict=True)]
        forwards = sum(batch.scored.trajectories.forwards for batch in batches)
        leaves = sum(batch.scored.trajectories.final.shape[0] for batch in batches)
        totals = self._runtime.total([forwards, leaves])
        self.forwards += round(totals[0])
        self.reward_calls += round(totals[1])
        return batches

    def _sample(self, draws: Sequence[Draw], plans: tuple[Plan, ...], index: int, report: Report) -> _Sampled:
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
        of_leaf = [texts[p] for p in prompt_of_leaf.tolist()]
        watched = self._config.guards.enabled and self._config.guards.min_diversity is not None
        scoring = decode_and_submit(
            self._pipeline,
            self.reward,
            walks.final,
            of_leaf,
            metadata=[self._metadata.get(text, {}) for text in of_leaf],
            micro_batch=sampling.micro_batch,
            keep_thumbnails=watched,
            progress=lambda done, total: report("scoring", done, total),
        )
        position = torch.tensor([draw.position * roots + s for draw, s in starts])
        return _Sampled(walks, condition, prompt_index, position, tuple(texts), scoring)

    def _batch(self, sampled: _Sampled, media: Media, combined: Combined) -> Batch:
        walks, small = sampled.walks, media.thumbnails
        scored = Scored(
            trajectories=walks,
            rewards={"total": combined.total, **media.components},
            edge_reward=edge_rewards(combined.total, walks),
            group=group_ids(walks, sampled.prompt_index, by=self._config.objective.advantage.group_by),
        )
        return Batch(
            scored,
            sampled.condition,
            sampled.prompt_index,
            sampled.root_position,
            sampled.texts,
            scored.rewards,
            parts=tuple((weight, edge_rewards(values, walks)) for weight, values in combined.parts),
            distances=torch.zeros(0) if small is None else pairwise_distance(small, sampled.prompt_of_leaf),
        )

    def _check_failed(self, media: Sequence[Media], prompts: Sequence[Sequence[str]], index: int) -> None:
        """Refuse to go on by a few of the samples; all processes find the same, and stop together."""
        guards, runtime = self._config.guards, self._runtime
        failed, samples = runtime.total([sum(len(each.errors) for each in media), sum(len(each) for each in prompts)])
        if not (guards.enabled and failed > guards.max_failed * samples):
            return
        reasons = [
            (texts[row], why) for each, texts in zip(media, prompts, strict=True) for row, why in each.errors.items()
        ]
        text, why = runtime.gather(reasons[:1])[0]
        raise RuntimeError(
            f"rollout {index + 1}: {failed:.0f} of {samples:.0f} samples have no reward, more than guards.max_failed = "
            f"{guards.max_failed:g} allows; the first, of {text!r}: {why}; correct the reward, or allow more"
        )
