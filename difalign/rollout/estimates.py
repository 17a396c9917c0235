"""What a sample looks like on the way: estimates of x0 at chosen levels of noise, beside the finished sample.

These are what a noise-aware reward is taught and evaluated on. The walk is deterministic, so that every row is a pure
function of its prompt and seed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from difalign.core.protocols import Condition, Pipeline
from difalign.core.types import NoiseGrid, Source
from difalign.rollout.branches import branch_rows, estimates

_SAME_LEVEL = 1e-4  # a sigma that is written down is rounded


@dataclass(frozen=True, slots=True)
class WalkEstimates:
    """N walks to the end, seen at some levels."""

    sigmas: tuple[float, ...]  # L, of the grid, from noisy to clean
    clean: Mapping[Source, Tensor]  # [L, N, *latent] what each source shows: an estimate of x0, or the state itself
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
    sources: tuple[Source, ...] = ("guided",),
    micro_batch: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> WalkEstimates:
    """Walk from every seed to the end without noise on the way, and keep what some levels show of where it goes.

    An estimate at level i has cost i + 1 evaluations of its row: the one at that level is what it is read from. The
    conditional branch is part of a guided evaluation, so that its estimate costs nothing more.

    Args:
        pipeline: the model, its guidance as it is.
        condition: one row a distinct prompt.
        prompt_index: [N] int64, the row of ``condition`` that each walk follows.
        seeds: N seeds of the initial latents, as ``rollout`` takes them.
        num_steps: of the grid.
        sigmas: the levels, by where steps of the grid start; see ``find_steps``.
        sources: what is kept of each level: x0 by the guided prediction, by the conditional branch, or the state.
        micro_batch: the most rows in one forward.
        progress: called with (rows evaluated, rows in all) after every forward.

    Raises:
        ValueError: if a level is not of the grid, the seeds and prompts do not match, no source is named, or the
            pipeline does not show the one that is.
    """
    if not seeds or prompt_index.shape != (len(seeds),):
        raise ValueError(f"{len(seeds)} seeds, prompts of shape {tuple(prompt_index.shape)}: give one of each a walk")
    if micro_batch < 1:
        raise ValueError(f"micro_batch = {micro_batch}: must be at least 1")
    if not sources or len(set(sources)) != len(sources):
        raise ValueError(f"sources = {list(sources)}: name at least one, and each once")
    grid = pipeline.grid(num_steps)
    steps = find_steps(grid, sigmas)
    total, done = len(seeds) * num_steps, 0
    seen: list[Tensor] = []
    finals: list[Tensor] = []
    for low in range(0, len(seeds), micro_batch):
        own = slice(low, low + micro_batch)
        start = pipeline.initial_latents([torch.Generator().manual_seed(seed) for seed in seeds[own]])
        x, kept, rows = start.to(pipeline.device), [], condition.rows(prompt_index[own])
        for i in range(num_steps):
            step = torch.full((x.shape[0],), i, device=x.device)
            shown = branch_rows(pipeline, grid, x, step, rows, conditional="conditional" in sources and i in steps)
            if i in steps:
                read = [estimates(pipeline.process, x, shown, grid, step, sources=(source,)) for source in sources]
                kept.append(torch.stack(read))
            still = torch.zeros(x.shape[0], device=x.device)
            x = pipeline.process.transition(x, shown.guided, grid, step, still).mean
            done += x.shape[0]
            if progress is not None:
                progress(done, total)
        seen.append(torch.stack(kept, dim=1))
        finals.append(x)
    named = tuple(float(grid.sigma[step]) for step in steps)
    clean = torch.cat(seen, dim=2)  # [sources, L, N, *latent]
    return WalkEstimates(named, dict(zip(sources, clean, strict=True)), torch.cat(finals), forwards=done)
