"""Whole runs in little time: a toy that makes pictures, and a random SD3 with the files that a run is made of."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from difalign.build.plans import build_plans
from difalign.core.config import RunConfig
from difalign.core.prompts import Prompt
from difalign.core.protocols import RewardModel
from difalign.core.types import Metadata, RewardOutput
from difalign.process.flow import FlowProcess
from difalign.train.resume import find_resume_point
from difalign.train.run import Task, run_training
from difalign.train.runtime import Runtime
from tests.sections import lay_over
from tests.tiny_models import tiny_sd, tiny_sd3
from tests.toys import ElementwisePolicy, TunableToy

WEIGHTS = "pytorch_lora_weights.safetensors"
TRAIN = tuple(Prompt(f"{0.01 * i:.2f}") for i in range(8))
HELDOUT = tuple(Prompt(f"{0.5 + 0.01 * i:.2f}", kind) for i, kind in enumerate(("low", "low", "high", "high", "high")))


# --- the toy -----------------------------------------------------------------------------------------------------


@dataclass
class Painter(TunableToy):
    """The analytic flow on 3x4x4 latents, shown through a sigmoid; two weights to train."""

    def decode(self, latents: Tensor) -> Tensor:
        return torch.sigmoid(latents)

    @contextmanager
    def reference(self) -> Iterator[None]:
        raise AssertionError("these runs measure no divergence")
        yield

    def weights(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.network.named_parameters()}

    def save_lora(self, folder: str | Path) -> Path:
        save_file(self.weights(), Path(folder) / WEIGHTS)
        return Path(folder) / WEIGHTS

    def save_network(self, folder: str | Path, *, weights: Mapping[str, Tensor] | None = None) -> None:
        Path(folder).mkdir(exist_ok=True)
        save_file(self.weights(), Path(folder) / "diffusion_pytorch_model.safetensors")
        (Path(folder) / "config.json").write_text("{}")


@dataclass(frozen=True)
class Brightness:
    """The mean pixel; its square as a component."""

    name: str = "brightness"
    differentiable: bool = True

    def score(
        self, media: Tensor, prompts: Sequence[str], *, metadata: Metadata | None = None, sigma: float | None = None
    ) -> RewardOutput:
        mean = media.flatten(1).mean(dim=1).float()
        return RewardOutput(mean, {"square": mean.square()})


def toy_run_config(folder: Path, **sections: Any) -> RunConfig:
    """Three rollouts of two prompts times four samples times four steps; ``sections`` are laid over it."""
    base: dict[str, Any] = {
        "name": "toy",
        "output_dir": str(folder),
        "sampling": {"steps": 4, "prompts_per_update": 2, "samples_per_prompt": 4, "micro_batch": 8},
        "objective": {"clip_range": 0.01},
        "training": {
            "learning_rate": 0.02,
            "updates_per_rollout": 1,
            "micro_batch": 8,
            "rollouts": 3,
            "ema": {"enabled": False},
        },
        "evaluation": {"steps": 4, "seeds_per_prompt": 2, "micro_batch": 8, "bootstrap_samples": 200},
        "diagnostics": {"every": 0},
    }
    return RunConfig.model_validate(lay_over(base, sections))


def painter() -> Painter:
    """The toy before training; two calls give the same."""
    return Painter(ElementwisePolicy(), process=FlowProcess(), latent=(3, 4, 4))


def run_toy(config: RunConfig, *, pipeline: Painter | None = None, reward: RewardModel | None = None) -> dict[str, Any]:
    """Run the toy as configured and return its summary."""

    def build(runtime: Runtime) -> Task:
        return Task(
            pipeline=painter() if pipeline is None else pipeline,
            reward=Brightness() if reward is None else reward,
            prompts=TRAIN,
            heldout=HELDOUT,
            plans=lambda rollout: build_plans(config, rollout=rollout),
        )

    return run_training(config, build, resume=find_resume_point(config, {}))


def rows_of(folder: Path) -> list[dict[str, float]]:
    """The rows of a run's metrics, as written."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def without_clocks(values: dict[str, Any]) -> dict[str, Any]:
    """A summary or a row without what no two runs share."""
    return {name: value for name, value in values.items() if name not in ("seconds", "training_seconds")}


def rows_without_clocks(folder: Path) -> list[dict[str, float]]:
    """The rows of a run's metrics without what no two runs share."""
    return [without_clocks(row) for row in rows_of(folder)]


def weights_of(folder: Path) -> dict[str, Tensor]:
    """The weights that a run saved."""
    return load_file(folder / WEIGHTS)


# --- the random SD3 ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Redness:
    """Mean red less mean green, times ``scale``: a random network can be taught it."""

    scale: float = 1.0
    name: str = "redness"
    differentiable: bool = True

    def score(
        self, media: Tensor, prompts: Sequence[str], *, metadata: Metadata | None = None, sigma: float | None = None
    ) -> RewardOutput:
        red, green = media[:, 0].flatten(1).mean(dim=1), media[:, 1].flatten(1).mean(dim=1)
        return RewardOutput(self.scale * (red - green).float(), {"red": red.float()})


PIPELINE_CARD = """
name: random-sd3
summary: random weights
target: difalign.pipelines.sd3:SD3Pipeline
licence: Apache-2.0
path: weights
steps: 3
guidance: 2.0
options:
  max_sequence_length: 0 # no third text encoder
"""

REWARD_CARD = """
name: redness
summary: mean red less mean green
target: tests.train.small_runs:Redness
licence: Apache-2.0
options:
  scale: 1.0
"""


def write_random_sd3(folder: Path) -> Path:
    """Save the random SD3 and a card beside it; returns the card's file."""
    tiny_sd3().save_pretrained(folder / "weights")
    card = folder / "random_sd3.yaml"
    card.write_text(PIPELINE_CARD)
    return card


SD_CARD = """
name: random-sd
summary: random weights
target: difalign.pipelines.stable_diffusion:STABLE_DIFFUSION
family: diffusion
licence: Apache-2.0
path: sd_weights
steps: 3
guidance: 2.0
"""


def write_random_sd(folder: Path, *, scheduler: Any = None) -> Path:
    """Save the random Stable Diffusion and a card beside it; returns the card's file."""
    tiny_sd(scheduler=scheduler).save_pretrained(folder / "sd_weights")
    card = folder / "random_sd.yaml"
    card.write_text(SD_CARD)
    return card


def write_redness(folder: Path) -> Path:
    """Write the card of ``Redness``; returns its file."""
    card = folder / "redness.yaml"
    card.write_text(REWARD_CARD)
    return card
