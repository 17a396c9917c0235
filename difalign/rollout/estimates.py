"""What a sample looks like on the way: estimates of x0 at chosen levels of noise, beside the finished sample.

These are what a noise-aware reward is taught and evaluated on. The walk is deterministic, so that every row is a pure
function of its prompt and seed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from difalign.core.protocols import Condition, Pipeline
from difalign.core.types import NoiseGrid
from difalign.rollout.engine import predict_rows

_SAME_LEVEL = 1e-4  # a sigma that is written down is rounded


@dataclass(frozen=True, slots=True)
class WalkEstimates:
    """N walks to the end, seen at some levels."""

    sigmas: tuple[float, ...]  # L, of the grid, from noisy to clean
    clean: Tensor  # [L, N, *latent] the network's estimates of x0
    final: Tensor  # [N, *latent]
    forwards: int  # rows the network was evaluated on


def find_steps(grid: NoiseGrid, sigmas: Sequence[float]) -> tuple[int, ...]:
    """The step of the grid that starts at each sigma, from noisy to clean.

    Raises:
        ValueError: if no step starts there, naming where steps do, or a level is named twice.
    """
    starts = grid.sigma[:-1].double()
    steps = []
    for sigma in sigmas:
        distance = (starts - sigma).abs()
        if float(distance.min()) > _SAME_LEVEL:
            known = ", ".join(f"{level:.4f}" for level in starts.tolist())
            raise ValueError(f"sigma = {sigma:g}: no step of this grid starts there; its steps start at {known}")
        steps.append(int(distance.argmin()))
    if len(set(steps)) != len(steps) or not steps:
        raise ValueError(f"sigmas = {list(sigmas)}: name at least one level, and each once")
    return tuple(sorted(steps))


@torch.no_grad()
def walk_estimates(
    pipeline: Pipeline,
    *,
    condition: Condition,
    prompt_index: Tensor,
    seeds: Sequence[int],
    num_steps: int,
    sigmas: Sequence[float],
    micro_batch: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> WalkEstimates:
    """Walk from every seed to the end without noise on the way, and keep the estimates of x0 at some levels.

    An estimate at level i has cost i + 1 evaluations of its row: the one at that level is what it is read from.

    Args:
        pipeline: the model, its guidance as it is.
        condition: one row a distinct prompt.
        prompt_index: [N] int64, the row of ``condition`` that each walk follows.
        seeds: N seeds of the initial latents, as ``rollout`` takes them.
        num_steps: of the grid.
        sigmas: the levels, by where steps of the grid start; see ``find_steps``.
        micro_batch: the most rows in one forward.
        progress: called with (rows evaluated, rows in all) after every forward.

    Raises:
        ValueError: if a level is not of the grid, or the seeds and prompts do not match.
    """
    if not seeds or prompt_index.shape != (len(seeds),):
        raise ValueError(f"{len(seeds)} seeds, prompts of shape {tuple(prompt_index.shape)}: give one of each a walk")
    if micro_batch < 1:
        raise ValueError(f"micro_batch = {micro_batch}: must be at least 1")
    grid = pipeline.grid(num_steps)
    steps = find_steps(grid, sigmas)
    total, done = len(seeds) * num_steps, 0
    seen: list[Tensor] = []
    finals: list[Tensor] = []
    for low in range(0, len(seeds), micro_batch):
        own = slice(low, low + micro_batch)
        start = pipeline.initial_latents([torch.Generator().manual_seed(seed) for seed in seeds[own]])
        x, kept = start.to(pipeline.device), []
        for i in range(num_steps):
            step = torch.full((x.shape[0],), i, device=x.device)
            prediction = predict_rows(pipeline, grid, x, step, condition.rows(prompt_index[own]))
            if i in steps:
                kept.append(pipeline.process.clean_estimate(x, prediction, grid, step))
            x = pipeline.process.transition(x, prediction, grid, step, torch.zeros(x.shape[0], device=x.device)).mean
            done += x.shape[0]
            if progress is not None:
                progress(done, total)
        seen.append(torch.stack(kept))
        finals.append(x)
    named = tuple(float(grid.sigma[step]) for step in steps)
    return WalkEstimates(named, torch.cat(seen, dim=1), torch.cat(finals), forwards=done)
