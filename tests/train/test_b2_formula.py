"""Two B2-DiffuRL stages against the method in plain loops (arXiv 2503.11240): branches, z-scores, extremes, gradient.

The loops know the published formulas and the key of the noise, and nothing of the package's engine or objective.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor

from difalign.core.rng import generator, row_seed
from difalign.core.types import NoiseGrid
from difalign.rollout.grouping import first_leaves
from difalign.train.collector import Batch
from difalign.train.partition import partition
from tests.sections import lay_over
from tests.train.ddim_toy import ddpo_trainer
from tests.train.toy_run import B2_SECTIONS, DIMENSIONS, TARGET, quiet, toy_config

STEPS, CHILDREN, ROOTS = 20, 5, 8
INTERVALS = (14, 17)  # 14 + floor(stage * 7 / 2)
POSITIVE, NEGATIVE = 1.0, -1.2  # so that not every start noise gives both
ADVANTAGE = {
    **B2_SECTIONS["objective"]["advantage"],
    "selection": {"positive": POSITIVE, "negative": NEGATIVE},
}
CONFIG = toy_config(
    **lay_over(
        B2_SECTIONS,
        {
            "sampling": {
                "steps": STEPS,
                "rule": "ddim",
                "noise_level": 1.0,
                "prompts_per_update": ROOTS,
                "plan": {"kind": "split", "children": CHILDREN, "last_step_noise": True},
            },
            "curriculum": {"first": 14, "last": 20, "stages": 2},
            "objective": {"timestep_fraction": 1.0, "advantage": ADVANTAGE},
            "training": {"inner_epochs": 1, "trajectories_per_update": None},
        },
    )
)


@dataclass(frozen=True)
class Walk:
    """One branch from its start to its end, in float64."""

    states: list[Tensor]  # T + 1 of [D]
    reward: float


def transition(grid: NoiseGrid, step: int, x: Tensor, bias: Tensor) -> tuple[Tensor, float]:
    """Mean and std of DDIM at eta 1 (arXiv 2010.02502, Eq. 12 and 16) for the toy's noise sigma x + bias."""
    kept, kept_next = float(grid.alpha[step]) ** 2, float(grid.alpha_next[step]) ** 2
    std = math.sqrt((1 - kept_next) / (1 - kept) * (1 - kept / kept_next))
    noise = math.sqrt(1 - kept) * x + bias[step]
    clean = (x - math.sqrt(1 - kept) * noise) / math.sqrt(kept)
    return math.sqrt(kept_next) * clean + math.sqrt(1 - kept_next - std**2) * noise, std


def branches(grid: NoiseGrid, bias: Tensor, seed: int, interval: int) -> list[Walk]:
    """The K walks of one start noise, each on its own: the prefix draws the noise of the first."""
    start = torch.randn(DIMENSIONS, generator=torch.Generator().manual_seed(seed)).double()
    walks = []
    for k in range(CHILDREN):
        states = [start]
        for step in range(STEPS):
            source = generator("step noise", seed, step)
            drawn = [torch.randn(DIMENSIONS, generator=source).double() for _ in range(CHILDREN)]
            mean, std = transition(grid, step, states[-1], bias)
            states.append(mean + std * drawn[k if step >= STEPS - interval else 0])
        walks.append(Walk(states, -float((states[-1] - TARGET).square().mean())))
    return walks


def seeds_of(batch: Batch, stage: int) -> list[int]:
    """Of every start noise, in the order of the batch; a prompt that comes again has other noise."""
    seen: Counter[str] = Counter()
    seeds = []
    for prompt in batch.prompt_index.tolist():
        text = batch.prompts[prompt]
        seeds.append(row_seed(CONFIG.seed, text, seen[text], stage))
        seen[text] += 1
    return seeds


def selected(
    walks: list[list[Walk]], texts: list[str], history: dict[str, list[float]]
) -> dict[tuple[int, int], float]:
    """(start noise, branch) -> z of the best where z is high enough, and of the worst where it is low enough."""
    for text, of_root in zip(texts, walks, strict=True):
        history.setdefault(text, []).extend(walk.reward for walk in of_root)
    kept = {}
    for root, (text, of_root) in enumerate(zip(texts, walks, strict=True)):
        pool = torch.tensor(history[text], dtype=torch.float64)
        z = [(walk.reward - float(pool.mean())) / (float(pool.std(correction=1)) + 1e-8) for walk in of_root]
        best, worst = z.index(max(z)), z.index(min(z))
        kept |= {(root, best): z[best]} if z[best] >= POSITIVE else {}
        kept |= {(root, worst): z[worst]} if z[worst] < NEGATIVE else {}
    return kept


def gradient(grid: NoiseGrid, bias: Tensor, chosen: list[tuple[Walk, float]], interval: int) -> Tensor:
    """Of -mean(A log p) over the trained steps of the kept walks: that of the clipped loss where the ratio is 1."""
    bias = bias.clone().requires_grad_()
    loss = torch.zeros((), dtype=torch.float64)
    for walk, z in chosen:
        for step in range(STEPS - interval, STEPS):
            mean, std = transition(grid, step, walk.states[step], bias)
            density = torch.distributions.Normal(mean, std).log_prob(walk.states[step + 1]).mean()
            loss = loss - max(-5.0, min(5.0, z)) * density
    return torch.autograd.grad(loss / (len(chosen) * interval), bias)[0]


def test_two_stages_are_the_published_method() -> None:
    trainer, pipeline = ddpo_trainer(CONFIG)
    with torch.no_grad():
        pipeline.network.bias.copy_(0.1 * torch.randn(STEPS, generator=generator("bias")))
    bias, grid = pipeline.network.bias.detach().double(), pipeline.grid(STEPS)
    history: dict[str, list[float]] = {}
    repeats = 0
    for stage, interval in enumerate(INTERVALS):
        batches = trainer._collector.collect(stage, quiet)
        advantages = trainer._comparison.advantages(batches)
        (part,) = partition(batches, advantages, CONFIG, trainer._runtime, update=stage)
        trained = part.batch.scored.trajectories
        loss = trainer._loss.chunk(
            part.batch,
            part.advantages.advantage,
            part.rows,
            weights=trainer._loss.step_weights(part.batch),
            total=part.total,
        )
        (ours,) = torch.autograd.grad(loss.loss, [pipeline.network.bias])

        walks = [branches(grid, bias, seed, interval) for seed in seeds_of(part.batch, stage)]
        final = torch.stack([walk.states[-1] for of_root in walks for walk in of_root])
        torch.testing.assert_close(trained.final.double(), final, rtol=1e-4, atol=1e-4)
        texts = [part.batch.prompts[prompt] for prompt in part.batch.prompt_index.tolist()]
        repeats += len(texts) - len(set(texts)) + len(set(texts) & set(history))
        kept = selected(walks, texts, history)
        leaves = set(first_leaves(trained)[part.rows].tolist())
        assert leaves == {root * CHILDREN + k for root, k in kept}
        assert part.count == len(kept) * interval
        expected = gradient(grid, bias, [(walks[root][k], z) for (root, k), z in kept.items()], interval)
        torch.testing.assert_close(ours.double(), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
        assert ours[: STEPS - interval].tolist() == [0.0] * (STEPS - interval)
        assert 0 < len(kept) < 2 * ROOTS  # some are kept and some are not
    assert repeats > 0  # a prompt came more than once, in one stage or in both
