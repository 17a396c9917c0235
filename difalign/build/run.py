"""A checked configuration becomes a run: the objects are built on the trainer's device and handed to it."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

from difalign.build.factory import build_pipeline, build_process, build_reward
from difalign.build.plans import build_plans
from difalign.build.preflight import Inputs
from difalign.core.config import RunConfig
from difalign.core.errors import ConfigError

if TYPE_CHECKING:
    from difalign.core.protocols import TrainablePipeline, Tunable
    from difalign.core.types import Plan
    from difalign.train.run import Task
    from difalign.train.runtime import Runtime

_CHECKED_ROLLOUTS = 200  # whose plans are looked at before training; the engine checks each again


def run_flow_grpo(inputs: Inputs) -> dict[str, Any]:
    """Train as ``inputs`` say, leave the run's folder, and return its summary; see ``difalign.train.run``.

    Raises:
        ConfigError: if a card's target cannot be imported or refuses its options, the pipeline cannot be loaded, or the
            run's folder can no longer be written.
        RuntimeError, FloatingPointError: if a guard of the trainer stops the run.
        Interrupted: if SIGINT or SIGTERM does, once its state is saved.
    """
    from difalign.train.run import run_training

    _check_precision(inputs.config)
    return run_training(inputs.config, partial(build_task, inputs), resume=inputs.resume)


def _check_precision(config: RunConfig) -> None:
    import torch

    if config.training.mixed_precision == "fp16" and not torch.accelerator.is_available():
        raise ConfigError(
            "training.mixed_precision = fp16: needs a GPU, and torch sees none; use training.mixed_precision=bf16"
        )


def build_task(inputs: Inputs, runtime: Runtime) -> Task:
    """Everything a run works on, on the device of ``runtime``.

    Raises:
        ConfigError: if a step is to be trained on that this model's chain makes without noise.
    """
    from difalign.train.run import Task

    config = inputs.config
    pipeline = build_trainable(inputs, runtime)
    _check_densities(config, pipeline)
    return Task(
        pipeline=pipeline,
        reward=build_reward(inputs.rewards, config.rewards, device=runtime.device),
        prompts=inputs.train_prompts,
        heldout=inputs.heldout_prompts,
        plans=partial(_plans_of, config),
        fingerprints=inputs.fingerprints,
    )


def build_trainable(inputs: Inputs, runtime: Runtime) -> TrainablePipeline:
    """The pipeline as it is trained: guided as in sampling, with adapters or with all weights free.

    Full fine-tuning holds the weights in float32 whatever the card says: small updates of a half-precision weight
    round to nothing.

    Raises:
        ConfigError: if gradient checkpointing is asked of a network that has none, or adapters of layers that it has
            not.
    """
    sampling, training = inputs.config.sampling, inputs.config.training
    pipeline = build_pipeline(
        inputs.pipeline,
        process=build_process(sampling.rule),
        guidance=sampling.guidance,
        device=runtime.device,
        height=sampling.height,
        width=sampling.width,
        detach_uncond=training.detach_uncond,
        dtype="float32" if training.trainable == "full" else None,
    )
    _free_weights(pipeline.tuning, inputs)
    if training.gradient_checkpointing:
        enable = getattr(pipeline.network, "enable_gradient_checkpointing", None)
        if enable is None:
            raise ConfigError(
                f"training.gradient_checkpointing = true: {type(pipeline.network).__name__} has none; set it to false"
            )
        enable()
    return pipeline


def _free_weights(tuning: Tunable, inputs: Inputs) -> None:
    config = inputs.config
    lora = config.training.lora
    if config.training.trainable == "full":
        tuning.train_all(keep_reference=config.objective.uses_reference)
    else:
        targets = lora.targets or inputs.pipeline.card.lora_targets or None  # None leaves them to the family
        try:
            tuning.attach_lora(rank=lora.rank, alpha=lora.alpha, targets=targets, seed=config.seed)
        except ValueError as error:
            raise ConfigError(f"training.lora: {error}") from error


def _check_densities(config: RunConfig, pipeline: TrainablePipeline) -> None:
    """Refuse steps that would be recorded without a density; whether there are any, only the loaded schedule says."""
    import torch

    sampling = config.sampling
    grid = pipeline.grid(sampling.steps)
    probe = torch.zeros(grid.num_steps, 1)
    process, steps = pipeline.process, torch.arange(grid.num_steps)
    silent = (process.transition(probe, probe, grid, steps, sampling.noise_level).std == 0).flatten().tolist()
    rollouts = range(min(config.training.rollouts, _CHECKED_ROLLOUTS))
    plans = (plan for rollout in rollouts for plan in _plans_of(config, rollout))
    recorded = {step for plan in plans for step, entry in enumerate(plan) if entry.record and silent[step]}
    if recorded:
        fraction = min(recorded) / sampling.steps
        raise ConfigError(
            f"sampling.steps = {sampling.steps}: steps {sorted(recorded)} are to be trained on but carry no noise "
            f"under sampling.rule = {sampling.rule} and this model's schedule, so have no density; "
            f"use objective.timestep_fraction={math.floor(fraction * 100) / 100:g}, or a plan that ends earlier"
        )


def _plans_of(config: RunConfig, rollout: int) -> tuple[Plan, ...]:
    return build_plans(config, rollout=rollout)
