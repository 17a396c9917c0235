"""Replay of recorded edges under the current policy, with gradient."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from difalign.core import gaussian
from difalign.core.gaussian import LogProb
from difalign.core.protocols import Condition, Pipeline
from difalign.core.types import GaussianStep, NoiseGrid, Trajectories
from difalign.rollout.engine import predict_rows


@dataclass(frozen=True, slots=True)
class EdgeLogProb:
    """What the current policy makes of B recorded edges."""

    step: GaussianStep  # mean [B, *latent], std [B, 1, ...]
    log_prob: Tensor  # [B], of the recorded x_next
    prediction: Tensor  # [B, *latent] the network's output, for KL terms on velocities or clean estimates


def edge_log_prob(
    pipeline: Pipeline,
    trajectories: Trajectories,
    rows: Tensor,
    *,
    condition: Condition,
    prompt_index: Tensor,
    grid: NoiseGrid,
    log_prob: LogProb = gaussian.log_prob,
) -> EdgeLogProb:
    """Evaluate the pipeline's current weights on edges ``rows`` ([B] int64), whose steps may differ.

    On unchanged weights ``log_prob`` equals the recorded one to the last bit, so that the importance ratio is exactly
    1, provided that the network's output for a row does not depend on the other rows of its batch. Attention and
    matrix kernels of real networks may break that when the batch size changes: replay in the rollout's micro-batch
    (and dtype) to keep the ratio exact. Call under ``torch.no_grad`` with adapters disabled for a reference policy.

    Args:
        pipeline: the current policy.
        trajectories: of one rollout.
        rows: edges to evaluate; the trajectories may live on another device than the pipeline.
        condition: one row a distinct prompt, as in ``engine.rollout``.
        prompt_index: [R] int64, the prompt of every root, as in ``engine.rollout``.
        grid: the grid of the rollout.
        log_prob: the one given to the rollout.
    """
    device = pipeline.device
    stored = rows.to(trajectories.x.device)
    x = trajectories.x[stored].to(device)
    step = trajectories.step[stored].to(device)
    root = trajectories.root[stored].to(prompt_index.device)
    prediction = predict_rows(pipeline, grid, x, step, condition.rows(prompt_index[root]))
    noise_level = trajectories.noise_level[stored].to(device)
    distribution = pipeline.process.transition(x, prediction, grid, step, noise_level)
    x_next = trajectories.x_next[stored].to(device)
    return EdgeLogProb(step=distribution, log_prob=log_prob(distribution, x_next), prediction=prediction)
