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
from difalign.objective.surrogate import SURROGATES, RatioNorm, Surrogate, plain_log_ratio
from difalign.objective.weights import STEP_WEIGHTS, step_weights
from difalign.rollout.replay import edge_log_prob
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
        self._surrogate = SURROGATES[config.objective.surrogate]
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
        device = self._pipeline.device
        walks = batch.scored.trajectories
        with self._runtime.autocast():
            new = edge_log_prob(
                self._pipeline,
                walks,
                rows,
                condition=batch.condition,
                prompt_index=batch.prompt_index,
                grid=self._grid,
                log_prob=self._log_prob,
            )
        # The means are kept where the ratio is to be normalised by them.
        ratio = plain_log_ratio if walks.mean is None else RatioNorm(new.step, walks.mean[rows].to(device))
        surrogate = self._surrogate(
            new.log_prob,
            walks.log_prob[rows].to(device),
            advantage[rows].to(device),
            clip_range=self._objective.clip_range,
            weight=weights.to(device)[walks.step[rows].to(device)],
            log_ratio=ratio,
        )
        loss = surrogate.loss.sum() / total
        divergence = self._divergence(batch, rows, new.prediction)
        if divergence is not None and self._objective.kl.beta > 0:
            loss = loss + self._objective.kl.beta * divergence.sum() / total
        return ChunkLoss(loss, surrogate, divergence)

    def _divergence(self, batch: Batch, rows: Tensor, prediction: Tensor) -> Tensor | None:
        """Distance from the policy before training, [B]; None if the run does not measure it."""
        kind = self._objective.kl.kind
        if kind == "none":
            return None
        walks = batch.scored.trajectories
        with torch.no_grad(), self._pipeline.tuning.reference(), self._runtime.autocast():
            old = edge_log_prob(
                self._pipeline,
                walks,
                rows,
                condition=batch.condition,
                prompt_index=batch.prompt_index,
                grid=self._grid,
            )
        device = self._pipeline.device
        x, step = walks.x[rows].to(device).float(), walks.step[rows].to(device)
        level = walks.noise_level[rows].to(device)
        policy, reference = (
            evaluate(self._pipeline.process, self._grid, x, p, step=step, noise_level=level)
            for p in (prediction, old.prediction)
        )
        return KL_TYPES[kind](policy, reference)


def _first_of_each(step: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct steps in rising order, and the first edge of each."""
    steps, inverse = torch.unique(step, return_inverse=True)
    positions = torch.arange(step.numel(), device=step.device)
    first = torch.full_like(steps, step.numel()).scatter_reduce(0, inverse, positions, reduce="amin")
    return steps, first
