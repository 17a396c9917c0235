"""A toy run for the trainer's tests: the analytic Gaussian flow, a quadratic reward with a known optimum."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from difalign.build.plans import build_plans
from difalign.core.config import RunConfig
from difalign.core.prompts import Prompt
from difalign.core.types import Metadata, RewardOutput
from difalign.process.flow import FlowProcess
from difalign.process.rules import FLOW_RULES
from difalign.train.policy_gradient import PolicyGradient
from difalign.train.runtime import Runtime
from tests.sections import lay_over
from tests.toys import PerceptronPolicy, TunableToy

DIMENSIONS = 4
TARGET = 0.8
PROMPTS = tuple(Prompt(f"{0.01 * i:.2f}") for i in range(12))


@dataclass
class TrainableToy(TunableToy):
    """The toy with what the trainer asks of a pipeline; the reference is the exact flow."""

    @contextmanager
    def reference(self) -> Iterator[None]:
        kept = self.network
        self.network = PerceptronPolicy(DIMENSIONS)
        try:
            yield
        finally:
            self.network = kept

    def save_lora(self, folder: str | Path) -> Path:
        raise AssertionError("not in these tests")

    def save_network(self, folder: str | Path, *, weights: Mapping[str, Tensor] | None = None) -> None:
        raise AssertionError("not in these tests")


@dataclass(frozen=True)
class Quadratic:
    """-mean (x - target)^2, at most 0."""

    name: str = "quadratic"
    differentiable: bool = True

    def score(
        self, media: Tensor, prompts: Sequence[str], *, metadata: Metadata | None = None, sigma: float | None = None
    ) -> RewardOutput:
        return RewardOutput(-(media - TARGET).square().flatten(1).mean(dim=1).float())


@dataclass(frozen=True)
class Constant(Quadratic):
    """Nothing to learn from."""

    value: float = 0.3

    def score(
        self, media: Tensor, prompts: Sequence[str], *, metadata: Metadata | None = None, sigma: float | None = None
    ) -> RewardOutput:
        return RewardOutput(torch.full((len(prompts),), self.value))


# B2-DiffuRL's published structure, with a chain of six steps and eight start noises.
B2_SECTIONS: dict[str, dict[str, Any]] = {
    "sampling": {
        "plan": {"kind": "split", "children": 5},
        "draw": "uniform",
        "prompts_per_update": 8,
        "samples_per_prompt": 1,
    },
    "curriculum": {"first": 4, "last": 6, "stages": 3},
    "objective": {
        "advantage": {
            "statistics": "stage_history",
            "ddof": 1,
            "eps": 1e-8,
            "group_by": "seed",
            "selection": {"positive": 0.5, "negative": -0.5},
        },
        "clip_range": 0.1,
    },
    "training": {"inner_epochs": 2, "trajectories_per_update": 6},
}


def toy_config(**sections: Any) -> RunConfig:
    """A small configuration; ``sections`` are laid over it, one mapping a section."""
    base: dict[str, dict[str, Any]] = {
        "sampling": {"steps": 6, "prompts_per_update": 4, "samples_per_prompt": 12, "micro_batch": 64},
        "objective": {"clip_range": 0.01},
        "training": {
            "learning_rate": 3e-3,
            "updates_per_rollout": 1,
            "micro_batch": 64,
            "rollouts": 8,
            "ema": {"enabled": False},
        },
    }
    return RunConfig.model_validate(lay_over(base, sections))


def toy_trainer(
    config: RunConfig,
    *,
    network: nn.Module | None = None,
    reward: Quadratic | None = None,
    prompts: Sequence[Prompt] = PROMPTS,
    runtime: Runtime | None = None,
) -> tuple[PolicyGradient, TrainableToy]:
    """A trainer on the toy, and its pipeline; initial weights are fixed."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = PerceptronPolicy(DIMENSIONS) if network is None else network
    pipeline = TrainableToy(
        network=network, process=FlowProcess(rule=FLOW_RULES[config.sampling.rule]), latent=(DIMENSIONS,)
    )
    trainer = PolicyGradient(
        pipeline,
        Quadratic() if reward is None else reward,
        prompts,
        plans=lambda rollout: build_plans(config, rollout=rollout),
        config=config,
        runtime=Runtime() if runtime is None else runtime,
    )
    return trainer, pipeline


def quiet(phase: str, done: int, total: int) -> None:
    """Progress that nobody sees."""


def weights(pipeline: TrainableToy) -> Tensor:
    """All weights as one vector."""
    return torch.cat([parameter.detach().reshape(-1) for parameter in pipeline.network.parameters()])
