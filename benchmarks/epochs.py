"""One epoch of the trainer, and what it is compared with: same weights, prompts and noise, and what each side made.

The trainer runs as ``difalign train`` runs it, on a shipped tiny model with adapters, with an empty prompt cache. The
other sides are functions that make a ``Run`` from an ``Epoch``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from benchmarks import recorder, sd3_models
from benchmarks.published_sd3 import Parts, Settings
from benchmarks.timing import PhaseClock
from difalign.build.definitions import find_definition
from difalign.build.preflight import prepare
from difalign.build.run import build_task
from difalign.core.overrides import load_config
from difalign.core.protocols import RewardModel
from difalign.core.rng import generator, row_seed
from difalign.core.types import Metadata, RewardOutput
from difalign.pipelines.sd3 import SD3Pipeline
from difalign.pipelines.unet import UNetPipeline
from difalign.train.policy_gradient import PolicyGradient
from difalign.train.run import Task
from difalign.train.runtime import Runtime
from difalign.train.sampler import rollout_prompts

Run = Callable[[PhaseClock], None]
Arrange = Callable[[list[Tensor]], Tensor]  # images call by call -> [N, 3, H, W] in the trainer's order


@dataclass
class Watched:
    """A reward that keeps the images it scored while told to."""

    reward: RewardModel
    name: str = "watched"
    differentiable: bool = False
    images: list[Tensor] | None = None

    def score(
        self, media: Tensor, prompts: Sequence[str], *, metadata: Metadata | None = None, sigma: float | None = None
    ) -> RewardOutput:
        """The inner reward's."""
        if self.images is not None:
            self.images.append(media)
        return self.reward.score(media, prompts, metadata=metadata, sigma=sigma)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one epoch made."""

    images: Tensor  # [N, 3, H, W]
    gradient: Tensor  # of the first update: all adapters as one vector, after clipping
    weights: Tensor  # likewise, after the last update


@dataclass
class Epoch:
    """Everything that all sides share; every run starts from the same weights and a fresh optimiser."""

    task: Task
    reward: Watched
    runtime: Runtime
    config: Any  # RunConfig; Any, since the union of plans is narrowed by who knows which plan it runs
    tokens: int  # max_sequence_length of the model's card
    initial: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.initial = [parameter.detach().clone() for parameter in self.parameters]

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
        self.adapter.clear_prompt_cache()

    @property
    def adapter(self) -> SD3Pipeline | UNetPipeline:
        """The adapter whose modules, or whose weights, all sides use."""
        assert isinstance(self.task.pipeline, SD3Pipeline | UNetPipeline)
        return self.task.pipeline

    # --- what another side takes ----------------------------------------------------------------------------------

    def parts(self, batch: int, *, noise_aware: bool = False) -> Parts:
        """The run's configuration and modules as a loop takes them, with ``batch`` rows a forward."""
        sampling, objective, training = self.config.sampling, self.config.objective, self.config.training
        plans = self.task.plans(0)
        steps = list(zip(*plans, strict=True))  # the entries of all plans at one step
        settings = Settings(
            levels=tuple(max(entry.noise_level for entry in entries) for entries in steps),
            trained=tuple(step for step, entries in enumerate(steps) if any(entry.record for entry in entries)),
            guidance=sampling.guidance,
            detach_uncond=training.detach_uncond,
            batch=batch,
            tokens=self.tokens,
            clip_range=objective.clip_range,
            advantage_clip=objective.advantage.clip,
            advantage_eps=objective.advantage.eps,
            max_grad_norm=training.max_grad_norm,
            noise_aware=noise_aware,
            beta=objective.kl.beta,
        )
        return Parts(self.adapter.diffusers_pipeline, self.reward, self.adapter.grid(sampling.steps), settings)

    def optimizer(self) -> torch.optim.AdamW:
        """A fresh one, as the run's configuration says."""
        training = self.config.training
        return torch.optim.AdamW(
            self.parameters,
            lr=training.learning_rate,
            betas=training.betas,
            weight_decay=training.weight_decay,
            eps=training.eps,
        )

    def rows(self) -> tuple[list[str], list[int]]:
        """The prompt and the seed of every start noise of the trainer's first rollout."""
        sampling, seed = self.config.sampling, self.config.seed
        (chosen,) = rollout_prompts(
            len(self.task.prompts), updates=1, prompts_per_update=sampling.prompts_per_update, seed=seed, rollout=0
        )
        keys = [(self.task.prompts[i].text, s) for i in chosen for s in range(sampling.samples_per_prompt)]
        return [text for text, _ in keys], [row_seed(seed, text, s, 0) for text, s in keys]

    def start(self, seeds: Sequence[int]) -> Tensor:
        """The start noise that the rollout engine draws from these seeds, [R, *latent]."""
        return self.adapter.initial_latents([torch.Generator().manual_seed(seed) for seed in seeds])

    def noise(self, seeds: Sequence[int], steps: Sequence[int], *, children: int) -> Tensor:
        """Its noise at ``steps``, [R, S, K, *latent]."""
        latent = tuple(self.adapter.latent_shape)
        noise = torch.empty(len(seeds), len(steps), children, *latent)
        for r, seed in enumerate(seeds):
            for s, step in enumerate(steps):
                source = generator("step noise", seed, step)
                for row in noise[r, s].unbind():
                    row.normal_(generator=source)
        return noise

    # --- running a side -------------------------------------------------------------------------------------------

    def outcome(self, make: Callable[[], Run], *, arrange: Arrange = torch.cat) -> Outcome:
        """One untimed epoch of a side; also its warm-up."""
        self.reset()
        run = make()
        self.reward.images = []
        with gradients() as seen:
            run(PhaseClock())
        images, self.reward.images = arrange(self.reward.images), None
        return Outcome(images, seen[0], torch.cat([parameter.detach().flatten() for parameter in self.parameters]))

    def timed(self, make: Callable[[], Run]) -> PhaseClock:
        """One epoch of a side; making the trainer and drawing a loop's noise are not timed."""
        self.reset()
        run = make()
        clock = PhaseClock()
        run(clock)
        return clock


def ours(epoch: Epoch, *, reward: RewardModel | None = None) -> Run:
    """The trainer, scored by ``reward``; by the epoch's own if there is none."""
    trainer = PolicyGradient(
        epoch.task.pipeline,
        epoch.reward if reward is None else reward,
        epoch.task.prompts,
        plans=epoch.task.plans,
        config=epoch.config,
        runtime=epoch.runtime,
    )

    def run(clock: PhaseClock) -> None:
        trainer.run(0, lambda phase, _done, _total: clock.mark(phase))
        clock.mark("training")

    return run


@contextmanager
def gradients() -> Iterator[list[Tensor]]:
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


def prepare_epoch(config: str | None, overrides: Sequence[str]) -> Epoch:
    """An epoch with one batch of a configuration, by default of the package's defaults.

    The adapters are moved off their zero start, so that all of them take gradient; groups without variance are kept
    and no average is taken, as in the loops.
    """
    sd3_models.quiet_libraries()
    settings = [
        "objective.filter_zero_variance=false",
        "training.updates_per_rollout=1",
        "training.ema.enabled=false",
        *overrides,
    ]
    chosen = load_config(None if config is None else find_definition("configs", config), settings)
    runtime = Runtime(mixed_precision=chosen.training.mixed_precision)
    inputs = prepare(chosen, check_output=False)
    task = build_task(inputs, runtime)
    source = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in task.pipeline.tuning.trainable_parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=source))
    tokens = sd3_models.tokens_of(inputs.pipeline.card)
    return Epoch(task, Watched(task.reward), runtime, inputs.config, tokens)


def fastest_epochs(epoch: Epoch, sides: Mapping[str, Callable[[], Run]], *, rounds: int) -> dict[str, PhaseClock]:
    """The fastest epoch of every side over alternating rounds."""
    clocks: dict[str, list[PhaseClock]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, make in sides.items():
            clocks[name].append(epoch.timed(make))
    return {name: min(of_one, key=lambda clock: clock.total) for name, of_one in clocks.items()}


def compared(best: Mapping[str, PhaseClock], *, target: float) -> dict[str, object]:
    """The figures of the sides ``ours``, ``loop`` and ``loop_same_batch``."""
    mine, loop = best["ours"], best["loop"]
    return {
        "ratio": mine.total / loop.total,
        "target": target,
        "ratio_same_batch": mine.total / best["loop_same_batch"].total,
        "ratio_by_phase": {name: spent / loop.seconds[name] for name, spent in mine.seconds.items()},
        "cpu_seconds": {name: {**clock.seconds, "total": clock.total} for name, clock in best.items()},
    }


def differences(mine: Outcome, other: Outcome, *, learning_rate: float) -> dict[str, float]:
    """The largest ones of images (absolute), gradient (relative to the largest element) and update (in rates)."""
    return {
        "max_image_difference": float((mine.images - other.images).abs().max()),
        "max_gradient_difference": float((mine.gradient - other.gradient).abs().max() / mine.gradient.abs().max()),
        "max_update_difference": float((mine.weights - other.weights).abs().max()) / learning_rate,
    }


def command_line(description: str | None, *, config: str, rounds: int) -> argparse.ArgumentParser:
    """The options that the benchmarks of an epoch share."""
    parser = recorder.command_line(description, rounds=rounds)
    parser.add_argument("--config", default=config, help="a shipped configuration or a YAML file")
    parser.add_argument("--steps", type=int, help="default: the configuration's")
    parser.add_argument("--guidance", type=float, help="default: the configuration's")
    parser.add_argument("--micro-batch", type=int, help="rows a forward of ours; default: the configuration's")
    return parser


def overrides_of(options: argparse.Namespace) -> list[str]:
    """What the options of ``command_line`` change in a configuration."""
    changes = {"sampling.steps": options.steps, "sampling.guidance": options.guidance}
    changes |= {f"{part}.micro_batch": options.micro_batch for part in ("sampling", "training")}
    return [f"{key}={value}" for key, value in changes.items() if value is not None]
