"""What recorded edges add to the loss: the surrogate, and the pull towards the policy before training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from difalign.core.config import RunConfig
from difalign.core.gaussian import LOG_PROBS
from difalign.core.protocols import TrainablePipeline
from difalign.core.types import NoiseGrid
from difalign.objective.kl import KL_TYPES, evaluate
from difalign.objective.surrogate import SURROGATES, RatioNorm, Surrogate, pair_logistic, plain_log_ratio
from difalign.objective.weights import STEP_WEIGHTS, step_weights
from difalign.rollout.replay import EdgeLogProb, edge_log_prob
from difalign.train.collector import Batch
from difalign.train.runtime import Runtime


@dataclass(frozen=True, slots=True)
class ChunkLoss:
    """The part of the loss that one micro-batch of B edges makes up."""

    loss: Tensor  # [] with gradient
    surrogate: Surrogate
    divergence: Tensor | None  # [B] from the policy before training; None if the run does not measure it


@final
class EdgeLoss:
    """The objective of a run on the edges of a batch."""

    def __init__(self, pipeline: TrainablePipeline, *, config: RunConfig, runtime: Runtime, grid: NoiseGrid) -> None:
        self._pipeline = pipeline
        self._objective = config.objective
        self._log_prob = LOG_PROBS[config.objective.log_prob]
        self._runtime = runtime
        self._grid = grid

    def step_weights(self, batch: Batch) -> Tensor:
        """[T] by step, over the steps that this batch trains."""
        walks = batch.scored.trajectories
        steps, first = _first_of_each(walks.step)
        rule = STEP_WEIGHTS[self._objective.weight]
        return step_weights(rule, self._pipeline.process, self._grid, steps, noise_level=walks.noise_level[first])

    def chunk(self, batch: Batch, advantage: Tensor, rows: Tensor, *, weights: Tensor, total: float) -> ChunkLoss:
        """The loss of some edges.

        Args:
            batch: what the edges are of.
            advantage: [E] of all edges of the batch.
            rows: [B] the edges.
            weights: [T] by step.
            total: edges of the whole update, over all processes; each weighs one part in so many.
        """
        with self._runtime.autocast():
            new = self._replay(batch, rows)
        reference = self._reference(batch, rows) if self._objective.uses_reference else None
        surrogate = self._surrogate(batch, rows, new, reference, advantage=advantage, weights=weights)
        loss = surrogate.loss.sum() / total
        divergence = self._divergence(batch, rows, new, reference)
        if divergence is not None and self._objective.kl.beta > 0:
            loss = loss + self._objective.kl.beta * divergence.sum() / total
        return ChunkLoss(loss, surrogate, divergence)

    def _replay(self, batch: Batch, rows: Tensor) -> EdgeLogProb:
        return edge_log_prob(
            self._pipeline,
            batch.scored.trajectories,
            rows,
            condition=batch.condition,
            prompt_index=batch.prompt_index,
            grid=self._grid,
            log_prob=self._log_prob,
        )

    def _reference(self, batch: Batch, rows: Tensor) -> EdgeLogProb:
        """The edges under the policy before training."""
        with torch.no_grad(), self._pipeline.tuning.reference(), self._runtime.autocast():
            return self._replay(batch, rows)

    def _surrogate(
        self,
        batch: Batch,
        rows: Tensor,
        new: EdgeLogProb,
        reference: EdgeLogProb | None,
        *,
        advantage: Tensor,
        weights: Tensor,
    ) -> Surrogate:
        device, objective, walks = self._pipeline.device, self._objective, batch.scored.trajectories
        old, weight = walks.log_prob[rows].to(device), weights.to(device)[walks.step[rows].to(device)]
        if objective.surrogate == "pair":
            assert reference is not None, "pairs are measured against the policy before training"
            return pair_logistic(
                new.log_prob,
                old,
                reference.log_prob,
                beta=objective.pair.beta,
                clip=objective.pair.clip,
                clip_range=objective.clip_range,
                weight=weight,
            )
        # The means are kept where the ratio is to be normalised by them.
        ratio = plain_log_ratio if walks.mean is None else RatioNorm(new.step, walks.mean[rows].to(device))
        return SURROGATES[objective.surrogate](
            new.log_prob,
            old,
            advantage[rows].to(device),
            clip_range=objective.clip_range,
            weight=weight,
            log_ratio=ratio,
        )

    def _divergence(self, batch: Batch, rows: Tensor, new: EdgeLogProb, reference: EdgeLogProb | None) -> Tensor | None:
        """Distance from the policy before training, [B]; None if the run does not measure it."""
        kind = self._objective.kl.kind
        if kind == "none" or reference is None:
            return None
        device, walks = self._pipeline.device, batch.scored.trajectories
        x, step = walks.x[rows].to(device).float(), walks.step[rows].to(device)
        level = walks.noise_level[rows].to(device)
        policy, base = (
            evaluate(self._pipeline.process, self._grid, x, each.prediction, step=step, noise_level=level)
            for each in (new, reference)
        )
        return KL_TYPES[kind](policy, base)


def _first_of_each(step: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct steps in rising order, and the first edge of each."""
    steps, inverse = torch.unique(step, return_inverse=True)
    positions = torch.arange(step.numel(), device=step.device)
    first = torch.full_like(steps, step.numel()).scatter_reduce(0, inverse, positions, reduce="amin")
    return steps, first
