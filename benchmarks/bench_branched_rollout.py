"""Branched rollouts through the engine against the same branches computed one by one, in CPU seconds.

All sides walk the same branches from the same roots with the same network, noise and log-probs, and give the same
samples (the largest difference is reported). "One by one" walks every branch on its own from its root, a single row
at a time. "Nested loop" has the structure of the published scripts: one root at a time, a shared trunk, the children
of a branch step as one batch. Times are the fastest of alternating rounds in one process. The aim is 0.5 against "one
by one".

    python -m benchmarks.bench_branched_rollout --steps 10 --children 6
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks import recorder, timing
from difalign.core import gaussian
from difalign.core.protocols import Condition, Modality, Process
from difalign.core.rng import generator
from difalign.core.types import NoiseGrid
from difalign.process.flow import FlowProcess
from difalign.process.grids import flow_match_grid
from difalign.rollout import plans
from difalign.rollout.engine import rollout
from difalign.rollout.trie import count_forwards, count_leaves

CPU = torch.device("cpu")
FLOW = FlowProcess()
CHANNELS, SIZE = 8, 8
NOISE_LEVEL = 0.7


@dataclass(frozen=True, slots=True)
class Prompts:
    """Prompt embeddings, one row each."""

    embedding: Tensor  # [P, width]

    def __len__(self) -> int:
        """The number of prompts."""
        return self.embedding.shape[0]

    def rows(self, index: Tensor) -> Prompts:
        """The rows ``index``."""
        return Prompts(self.embedding[index])


class Denoiser(nn.Module):
    """A small transformer over the pixels of a latent: the cost profile of a real denoiser, at random weights."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.enter = nn.Linear(CHANNELS, width)
        self.position = nn.Parameter(torch.randn(SIZE * SIZE, width) * 0.02)
        self.time = nn.Linear(1, width)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.leave = nn.Linear(width, CHANNELS)

    def forward(self, x: Tensor, t: Tensor, embedding: Tensor) -> Tensor:
        """The velocity, [N, C, H, W]."""
        tokens = self.enter(x.flatten(2).transpose(1, 2)) + self.position
        tokens = tokens + (self.time(t[:, None]) + embedding)[:, None]
        return self.leave(self.blocks(tokens)).transpose(1, 2).unflatten(2, (SIZE, SIZE))


@dataclass
class Model:
    """A denoiser as a pipeline."""

    network: nn.Module
    width: int
    process: Process = FLOW
    device: torch.device = CPU
    modality: Modality = "image"

    def grid(self, num_steps: int) -> NoiseGrid:
        """Stable Diffusion 3's levels."""
        return flow_match_grid(num_steps, shift=3.0)

    def encode(self, prompts: Sequence[str]) -> Prompts:
        """A random embedding a prompt."""
        return Prompts(torch.stack([torch.randn(self.width, generator=generator("prompt", p)) for p in prompts]))

    def initial_latents(self, generators: Sequence[torch.Generator]) -> Tensor:
        """Standard normal latents."""
        return torch.stack([torch.randn(CHANNELS, SIZE, SIZE, generator=source) for source in generators])

    def predict(self, x: Tensor, model_time: Tensor, condition: Condition) -> Tensor:
        """The velocity, without guidance."""
        assert isinstance(condition, Prompts)
        return self.network(x, model_time / 1000.0, condition.embedding)

    def decode(self, latents: Tensor) -> Tensor:
        """The latents themselves."""
        return latents


@dataclass(frozen=True, slots=True)
class Task:
    """What every side walks: a branch of ``children`` at each of the steps ``at``, from every root."""

    model: Model
    condition: Condition
    grid: NoiseGrid
    at: tuple[int, ...]
    children: int
    roots: int

    def start(self, root: int) -> Tensor:
        """The initial latent of a root, [1, C, H, W]."""
        return self.model.initial_latents([torch.Generator().manual_seed(root)])

    def noise(self, root: int, step: int) -> Tensor:
        """The noise of a root's children at a step, [K, C, H, W]."""
        source = generator("step noise", root, step)
        return torch.stack([torch.randn(CHANNELS, SIZE, SIZE, generator=source) for _ in range(self.children)])

    def velocity(self, x: Tensor, step: int, root: int) -> Tensor:
        """The network on rows of one root."""
        rows = self.condition.rows(torch.full((x.shape[0],), root % len(self.condition)))
        return self.model.predict(x, self.grid.model_time[step].expand(x.shape[0]), rows)

    def ode(self, x: Tensor, root: int, *, first: int, stop: int) -> Tensor:
        """The deterministic steps [first, stop)."""
        for step in range(first, stop):
            x = self.model.process.transition(x, self.velocity(x, step, root), self.grid, step, 0.0).mean
        return x

    def fork(self, x: Tensor, velocity: Tensor, step: int, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The stochastic step of rows that start alike: (children, their log-probs)."""
        x, velocity = x.expand_as(noise), velocity.expand_as(noise)
        distribution = self.model.process.transition(x, velocity, self.grid, step, NOISE_LEVEL)
        children = gaussian.sample(distribution, noise)
        return children, gaussian.log_prob(distribution, children)


@torch.no_grad()
def through_engine(task: Task, *, micro_batch: int) -> Tensor:
    """All branches of all roots together, [R * branches * K, C, H, W]."""
    return rollout(
        task.model,
        plans.branch(task.grid.num_steps, NOISE_LEVEL, children=task.children, at=task.at),
        condition=task.condition,
        prompt_index=torch.arange(task.roots) % len(task.condition),
        root_seeds=range(task.roots),
        grid=task.grid,
        micro_batch=micro_batch,
    ).final


@torch.no_grad()
def one_by_one(task: Task) -> Tensor:
    """Every branch walked on its own, from its root to its end."""
    finals = []
    for root in range(task.roots):
        for step in task.at:
            for noise in task.noise(root, step).split(1):
                x = task.ode(task.start(root), root, first=0, stop=step)
                child, _ = task.fork(x, task.velocity(x, step, root), step, noise)
                finals.append(task.ode(child, root, first=step + 1, stop=task.grid.num_steps))
    return torch.cat(finals)


@torch.no_grad()
def nested_loop(task: Task) -> Tensor:
    """The structure of the published scripts: one root at a time, a shared trunk, the children of a step as a batch."""
    finals = []
    for root in range(task.roots):
        trunk = task.start(root)
        for step in range(max(task.at) + 1):
            velocity = task.velocity(trunk, step, root)
            if step in task.at:
                children, _ = task.fork(trunk, velocity, step, task.noise(root, step))
                finals.append(task.ode(children, root, first=step + 1, stop=task.grid.num_steps))
            trunk = task.model.process.transition(trunk, velocity, task.grid, step, 0.0).mean
    return torch.cat(finals)


def measure(task: Task, *, micro_batch: int, rounds: int) -> dict[str, float]:
    """The fastest seconds of each side over alternating rounds, their ratios, and how far the samples differ."""
    sides: dict[str, Callable[[], Tensor]] = {
        "engine": lambda: through_engine(task, micro_batch=micro_batch),
        "one_by_one": lambda: one_by_one(task),
        "nested_loop": lambda: nested_loop(task),
    }
    samples = {name: run() for name, run in sides.items()}  # also the warm-up
    seconds = timing.fastest(timing.alternate(sides, rounds=rounds))
    made = plans.branch(task.grid.num_steps, NOISE_LEVEL, children=task.children, at=task.at)
    return {
        "ratio": seconds["engine"] / seconds["one_by_one"],
        "ratio_to_nested_loop": seconds["engine"] / seconds["nested_loop"],
        **{f"cpu_seconds_{name}": value for name, value in seconds.items()},
        "engine_forwards": count_forwards(made, task.roots),
        "one_by_one_forwards": count_leaves(made, task.roots) * task.grid.num_steps,
        "max_abs_difference": max(float((samples[name] - samples["engine"]).abs().max()) for name in sides),
    }


def build_model(*, width: int, depth: int, seed: int) -> Model:
    """A pipeline with random weights; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Model(network=Denoiser(width, depth).eval(), width=width)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = recorder.command_line(__doc__, rounds=5)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--children", type=int, default=6)
    parser.add_argument("--roots", type=int, default=4)
    parser.add_argument("--micro-batch", type=int, default=16)
    parser.add_argument("--width", type=int, default=64, help="a multiple of 4")
    parser.add_argument("--depth", type=int, default=4)
    return recorder.parse(parser, arguments)


def main(arguments: Sequence[str]) -> None:
    """Measure branching at every step, and at the first third of the steps."""
    options = parse(arguments)
    model = build_model(width=options.width, depth=options.depth, seed=0)
    cases = {
        "all": plans.all_steps(options.steps),
        "early": plans.early_steps(options.steps, max(1, options.steps // 3)),
    }
    condition = model.encode(["a", "b"])
    results = {
        name: measure(
            Task(
                model=model,
                condition=condition,
                grid=model.grid(options.steps),
                at=at,
                children=options.children,
                roots=options.roots,
            ),
            micro_batch=options.micro_batch,
            rounds=options.rounds,
        )
        for name, at in cases.items()
    }
    recorder.record("branched_rollout", arguments, options=options, results=results)


if __name__ == "__main__":
    main(sys.argv[1:])
