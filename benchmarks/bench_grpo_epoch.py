"""One Flow-GRPO epoch, rollout and update, against a loop with the structure of the published scripts.

Both sides work on the shipped tiny model with LoRA and the verifier as reward: the same weights, prompts, noise, number
of samples, steps, trained steps and loss. Ours is the trainer as ``train_flow_grpo.py`` runs it, with the shipped
configuration and an empty prompt cache; ``published_loop`` describes the other side. Zero-variance filtering, which
would spare both sides the same rows, is off.

``ratio`` compares with the loop at its published batch of 9 rows; the aim is 0.6. ``ratio_same_batch`` gives the loop
our micro-batch as well, to show how much of the difference is the size of the batch: the scripts tie it to the
geometry of their groups, here it only says how much memory a forward may take.

That both do the same is checked first: the largest difference of the images, of the gradient (relative to its largest
element) and of the weights after the update (in learning rates; Adam's first step turns the sign of any gradient into
a whole one, so rounding can show there). Times are processor seconds of the fastest of alternating rounds.

    python -m benchmarks.bench_grpo_epoch --prompts 9 --samples 12 --loop-batch 9
    python -m benchmarks.bench_grpo_epoch --guidance 4
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from benchmarks import recorder, sd3_models
from benchmarks.published_loop import Noise, PublishedLoop, Settings
from benchmarks.timing import PhaseClock
from difalign.build.definitions import find_definition
from difalign.build.preflight import prepare
from difalign.build.run import build_task
from difalign.core.config import RunConfig
from difalign.core.overrides import load_config
from difalign.core.protocols import RewardModel
from difalign.core.rng import generator, row_seed
from difalign.core.types import RewardOutput
from difalign.pipelines.sd3 import SD3Pipeline
from difalign.train.policy_gradient import PolicyGradient
from difalign.train.run import Task
from difalign.train.runtime import Runtime
from difalign.train.sampler import rollout_prompts

TARGET = 0.6
Run = Callable[[PhaseClock], None]


@dataclass
class Watched:
    """A reward that keeps the images it scored while told to."""

    reward: RewardModel
    name: str = "watched"
    differentiable: bool = False
    images: list[Tensor] | None = None

    def score(self, media: Tensor, prompts: Sequence[str], *, sigma: float | None = None) -> RewardOutput:
        """The inner reward's."""
        if self.images is not None:
            self.images.append(media)
        return self.reward.score(media, prompts, sigma=sigma)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one epoch made."""

    images: Tensor  # [N, 3, H, W]
    gradient: Tensor  # all adapters as one vector, after clipping
    weights: Tensor  # likewise, after the update


@dataclass
class Epoch:
    """Both sides over one set of modules; every run starts from the same weights and a fresh optimiser."""

    config: RunConfig
    task: Task
    reward: Watched
    runtime: Runtime
    tokens: int  # max_sequence_length of the model's card
    initial: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.initial = [parameter.detach().clone() for parameter in self.parameters]

    @property
    def pipeline(self) -> SD3Pipeline:
        """The adapter whose modules both sides use."""
        assert isinstance(self.task.pipeline, SD3Pipeline)
        return self.task.pipeline

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The adapters' weights."""
        return self.task.pipeline.tuning.trainable_parameters()

    @torch.no_grad()
    def reset(self) -> None:
        """Back to the initial weights, with an empty prompt cache."""
        for parameter, value in zip(self.parameters, self.initial, strict=True):
            parameter.copy_(value)
            parameter.grad = None
        self.pipeline.clear_prompt_cache()

    def ours(self) -> Run:
        """The trainer."""
        trainer = PolicyGradient(
            self.pipeline,
            self.reward,
            self.task.prompts,
            plans=self.task.plans,
            config=self.config,
            runtime=self.runtime,
        )

        def run(clock: PhaseClock) -> None:
            trainer.run(0, lambda phase, _done, _total: clock.mark(phase))
            clock.mark("training")

        return run

    def loop(self, batch: int) -> Run:
        """The yardstick with ``batch`` rows a forward."""
        training = self.config.training
        prompts, seeds = self.rows()
        grid = self.pipeline.grid(self.config.sampling.steps)
        looped = PublishedLoop(self.pipeline.diffusers_pipeline, self.reward, grid, self.settings(batch))
        optimizer = torch.optim.AdamW(
            self.parameters,
            lr=training.learning_rate,
            betas=training.betas,
            weight_decay=training.weight_decay,
            eps=training.eps,
        )
        noise = self.noise(seeds)

        def run(clock: PhaseClock) -> None:
            looped.run(prompts, noise, parameters=self.parameters, optimizer=optimizer, mark=clock.mark)

        return run

    def rows(self) -> tuple[list[str], list[int]]:
        """The prompt and the seed of every sample of the trainer's first rollout."""
        sampling, seed = self.config.sampling, self.config.seed
        (chosen,) = rollout_prompts(
            len(self.task.prompts), updates=1, prompts_per_update=sampling.prompts_per_update, seed=seed, rollout=0
        )
        keys = [(self.task.prompts[i].text, s) for i in chosen for s in range(sampling.samples_per_prompt)]
        return [text for text, _ in keys], [row_seed(seed, text, s, 0) for text, s in keys]

    def noise(self, seeds: Sequence[int]) -> Noise:
        """The noise that the rollout engine draws from these seeds."""
        steps = range(self.config.sampling.steps)
        start = self.pipeline.initial_latents([torch.Generator().manual_seed(seed) for seed in seeds])
        rows = [[torch.randn(start.shape[1:], generator=generator("step noise", s, i)) for i in steps] for s in seeds]
        return Noise(start, torch.stack([torch.stack(row) for row in rows]))

    def settings(self, batch: int) -> Settings:
        """The run's configuration as the loop takes it."""
        sampling, objective, training = self.config.sampling, self.config.objective, self.config.training
        (plan,) = self.task.plans(0)
        return Settings(
            steps=sampling.steps,
            levels=tuple(entry.noise_level for entry in plan),
            trained=tuple(step for step, entry in enumerate(plan) if entry.record),
            guidance=sampling.guidance,
            detach_uncond=training.detach_uncond,
            batch=batch,
            tokens=self.tokens,
            clip_range=objective.clip_range,
            advantage_clip=objective.advantage.clip,
            advantage_eps=objective.advantage.eps,
            max_grad_norm=training.max_grad_norm,
        )

    def outcome(self, make: Callable[[], Run]) -> Outcome:
        """One untimed epoch of a side; also its warm-up."""
        self.reset()
        run = make()
        self.reward.images = []
        with _gradients() as seen:
            run(PhaseClock())
        images, self.reward.images = torch.cat(self.reward.images), None
        (gradient,) = seen
        return Outcome(images, gradient, _vector(self.parameters))

    def timed(self, make: Callable[[], Run]) -> PhaseClock:
        """One epoch of a side; making the trainer and drawing the loop's noise are not timed."""
        self.reset()
        run = make()
        clock = PhaseClock()
        run(clock)
        return clock


@contextmanager
def _gradients() -> Iterator[list[Tensor]]:
    """Inside, the gradient of every optimiser step is kept, as one vector."""
    seen: list[Tensor] = []

    def keep(optimizer: torch.optim.Optimizer, _args: tuple[Any, ...], _options: dict[str, Any]) -> None:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        seen.append(torch.cat([parameter.grad.detach().flatten() for parameter in parameters]))

    handle = register_optimizer_step_pre_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()


def _vector(parameters: Sequence[nn.Parameter]) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in parameters])


def prepare_epoch(options: argparse.Namespace) -> Epoch:
    """Both sides for a command line; the adapters are moved off their zero start, so that all of them take gradient."""
    sd3_models.quiet_libraries()
    overrides = [
        f"sampling.prompts_per_update={options.prompts}",
        f"sampling.samples_per_prompt={options.samples}",
        "objective.filter_zero_variance=false",
        "training.updates_per_rollout=1",
        "training.ema.enabled=false",
    ]
    if options.steps is not None:
        overrides.append(f"sampling.steps={options.steps}")
    if options.guidance is not None:
        overrides.append(f"sampling.guidance={options.guidance}")
    if options.micro_batch is not None:
        overrides += [f"{part}.micro_batch={options.micro_batch}" for part in ("sampling", "training")]
    config = load_config(find_definition("configs", options.config), overrides)
    runtime = Runtime(mixed_precision=config.training.mixed_precision)
    inputs = prepare(config, check_output=False)
    task = build_task(inputs, runtime)
    source = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in task.pipeline.tuning.trainable_parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=source))
    return Epoch(config, task, Watched(task.reward), runtime, sd3_models.tokens_of(inputs.pipeline.card))


def measure(epoch: Epoch, *, loop_batch: int, rounds: int) -> dict[str, object]:
    """How far the sides differ, and the fastest epoch of each, phase by phase."""
    sampling = epoch.config.sampling
    micro_batch = min(sampling.micro_batch, sampling.prompts_per_update * sampling.samples_per_prompt)
    sides: dict[str, Callable[[], Run]] = {
        "ours": epoch.ours,
        "loop": partial(epoch.loop, loop_batch),
        "loop_same_batch": partial(epoch.loop, micro_batch),
    }
    outcomes = {name: epoch.outcome(make) for name, make in sides.items()}
    clocks: dict[str, list[PhaseClock]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, make in sides.items():
            clocks[name].append(epoch.timed(make))
    best = {name: min(of_one, key=lambda clock: clock.total) for name, of_one in clocks.items()}
    settings = epoch.settings(loop_batch)
    return {
        "ratio": best["ours"].total / best["loop"].total,
        "target": TARGET,
        "ratio_same_batch": best["ours"].total / best["loop_same_batch"].total,
        "ratio_by_phase": {name: spent / best["loop"].seconds[name] for name, spent in best["ours"].seconds.items()},
        "cpu_seconds": {name: {**clock.seconds, "total": clock.total} for name, clock in best.items()},
        "rows_a_forward": {"ours": micro_batch, "loop": loop_batch, "loop_same_batch": micro_batch},
        "samples": outcomes["ours"].images.shape[0],
        "steps": settings.steps,
        "trained_steps": len(settings.trained),
        "guidance": settings.guidance,
        **_differences(outcomes["ours"], outcomes["loop"], learning_rate=epoch.config.training.learning_rate),
    }


def _differences(ours: Outcome, loop: Outcome, *, learning_rate: float) -> dict[str, float]:
    """The largest ones of images (absolute), gradient (relative to the largest element) and update (in rates)."""
    return {
        "max_image_difference": float((ours.images - loop.images).abs().max()),
        "max_gradient_difference": float((ours.gradient - loop.gradient).abs().max() / ours.gradient.abs().max()),
        "max_update_difference": float((ours.weights - loop.weights).abs().max()) / learning_rate,
    }


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = recorder.command_line(__doc__, rounds=3)
    parser.add_argument("--config", default="flow_grpo_tiny_sd3", help="a shipped configuration or a YAML file")
    parser.add_argument("--prompts", type=int, default=9)
    parser.add_argument("--samples", type=int, default=12, help="a prompt")
    parser.add_argument("--steps", type=int, help="default: the configuration's")
    parser.add_argument("--guidance", type=float, help="default: the configuration's")
    parser.add_argument("--micro-batch", type=int, help="rows a forward of ours; default: the configuration's")
    parser.add_argument(
        "--loop-batch", type=int, default=9, help="rows a forward of the loop; 9 is published for SD3.5"
    )
    return recorder.parse(parser, arguments)


def main(arguments: Sequence[str]) -> None:
    """Measure and print one JSON line."""
    options = parse(arguments)
    epoch = prepare_epoch(options)
    figures = measure(epoch, loop_batch=options.loop_batch, rounds=options.rounds)
    recorder.record("grpo_epoch", arguments, options=options, results=figures)
    epoch.runtime.close()


if __name__ == "__main__":
    main(sys.argv[1:])
