"""A diffusion model whose best policy is known: DDIM at eta 1, a bias a step to learn, a quadratic reward.

The data is N(0, I), so the exact prediction of the noise is sigma x; the network adds one learnable number a step. The
chain is affine and Gaussian whatever these numbers are: they move the mean of the samples and leave their variance. The
reward is at best minus that variance, where the mean is the target.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from difalign.build.plans import build_plans
from difalign.core.config import RunConfig
from difalign.core.gaussian import broadcast_rows
from difalign.core.types import NoiseGrid
from difalign.process.diffusion import DiffusionProcess
from difalign.process.diffusion_grids import ddim_grid
from difalign.train.policy_gradient import PolicyGradient
from difalign.train.runtime import Runtime
from tests.train.toy_run import DIMENSIONS, PROMPTS, TARGET, Quadratic, TrainableToy, toy_config

STEPS = 10


class BiasPolicy(nn.Module):
    """The exact noise of N(0, I) plus a bias a step."""

    def __init__(self, grid: NoiseGrid) -> None:
        super().__init__()
        self.times = grid.model_time
        self.sigma = grid.sigma[:-1].float()
        self.bias = nn.Parameter(torch.zeros(grid.num_steps))

    def forward(self, x: Tensor, time: Tensor, offset: Tensor) -> Tensor:
        step = (time[:, None].long() == self.times[None]).int().argmax(dim=1)
        return broadcast_rows(self.sigma[step], x) * x + broadcast_rows(self.bias[step], x)


@dataclass
class DDIMToy(TrainableToy):
    """The toy on the levels of Stable Diffusion's schedule."""

    def grid(self, num_steps: int) -> NoiseGrid:
        return ddim_grid(num_steps)


@dataclass(frozen=True)
class Outlook:
    """What the policy's samples are expected to score."""

    reward: float
    best: float  # of any policy


def ddpo_config(**objective: object) -> RunConfig:
    """DDPO's settings on the toy: eta 1, every step trained, sixteen samples of each of four prompts an update."""
    updates = 1 if objective.get("surrogate") == "score_function" else 2
    return toy_config(
        sampling={
            "steps": STEPS,
            "rule": "ddim",
            "noise_level": 1.0,
            "prompts_per_update": 4,
            "samples_per_prompt": 16,
        },
        objective={"timestep_fraction": 1.0, "clip_range": 0.1, **objective},
        training={"learning_rate": 0.03, "updates_per_rollout": updates, "micro_batch": 2000},
    )


def ddpo_trainer(config: RunConfig) -> tuple[PolicyGradient, DDIMToy]:
    """A trainer on the toy, and its pipeline."""
    pipeline = DDIMToy(
        network=BiasPolicy(ddim_grid(config.sampling.steps)), process=DiffusionProcess(), latent=(DIMENSIONS,)
    )
    trainer = PolicyGradient(
        pipeline,
        Quadratic(),
        PROMPTS,
        plans=lambda rollout: build_plans(config, rollout=rollout),
        config=config,
        runtime=Runtime(),
    )
    return trainer, pipeline


@torch.no_grad()
def outlook(pipeline: DDIMToy) -> Outlook:
    """The expected reward by exact propagation of mean and variance from N(0, 1)."""
    grid = pipeline.grid(STEPS)
    mean, variance = 0.0, 1.0
    for step in range(STEPS):
        x = torch.tensor([[0.0], [1.0]])
        prediction = pipeline.network(x, grid.model_time[step].expand(2), torch.zeros(2))
        moved = pipeline.process.transition(x, prediction, grid, step, 1.0)
        still, ahead = moved.mean.flatten().tolist()
        slope = ahead - still
        mean, variance = still + slope * mean, slope**2 * variance + float(moved.std[0]) ** 2
    return Outlook(reward=-((mean - TARGET) ** 2) - variance, best=-variance)
