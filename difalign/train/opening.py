"""What a run does before its first evaluation: it checks what can be checked by now, and makes its folder ready."""

from __future__ import annotations

from pathlib import Path

from difalign.core.config import RunConfig
from difalign.core.config_yaml import to_yaml
from difalign.core.errors import ConfigError
from difalign.report.environment import describe_environment
from difalign.report.log import RunLog
from difalign.train.best import forget_best
from difalign.train.checkpoint import list_checkpoints, remove_checkpoint, sweep
from difalign.train.export import remove_exported
from difalign.train.resume import ResumePoint
from difalign.train.roll_call import check_space, prompt_facts, require_same, written_bytes
from difalign.train.runtime import Runtime
from difalign.train.task import Task


def check_launch(config: RunConfig, runtime: Runtime) -> None:
    """Whether what is trained goes with how the processes were launched.

    Raises:
        ConfigError: for adapters with weights in parts.
    """
    if runtime.shards and config.training.trainable == "lora":
        raise ConfigError(
            "training.trainable = 'lora': adapters are not taken apart (FSDP2); launch with "
            "configs/accelerate/ddp.yaml, or use training.trainable=full"
        )


def check_task(config: RunConfig, runtime: Runtime, task: Task) -> None:
    """What can only be asked once the objects are there: the same prompts everywhere, and room for the weights.

    Raises:
        ConfigError: naming the processes that differ, or what is needed on the disk and what is free.
    """
    require_same(runtime, prompt_facts({"prompts.train": task.prompts, "prompts.heldout": task.heldout}))
    weights = sum(
        parameter.numel() * parameter.element_size() for parameter in task.pipeline.tuning.trainable_parameters()
    )
    states = config.training.checkpoint.keep + 1  # the next is written before the oldest goes
    if config.resume is not None:
        states = max(1, states - len(list_checkpoints(config.run_folder)))
    copies = 1 + states * (4 if config.training.ema.enabled else 3)  # a state: weights, two moments, an average
    copies += states + 1 if config.guards.keep_best else 0  # the best weights, here and as checkpoints know them
    heldout = len(task.heldout[: config.evaluation.limit])
    check_space(runtime, config.run_folder, written_bytes(config, weights=copies * weights, heldout=heldout))


def open_log(config: RunConfig, runtime: Runtime, point: ResumePoint | None) -> RunLog:
    """The run's folder, emptied if it is to be overwritten; on the main process."""
    log = RunLog(config.run_folder)
    if point is None:
        if config.overwrite:
            log.clear()
            remove_exported(config.run_folder)
            forget_best(config.run_folder)
            remove_checkpoints(config.run_folder, after=-1)
        describe(config, runtime, log)
    return log


def describe(config: RunConfig, runtime: Runtime, log: RunLog) -> None:
    """What the run is and where it takes place; how it was resumed is not part of that."""
    log.write_config(to_yaml(config.model_copy(update={"resume": None, "resume_with_changes": False})))
    log.write_environment(describe_environment(processes=runtime.world))


def remove_checkpoints(folder: Path, *, after: int) -> None:
    """Remove the checkpoints with more than ``after`` rollouts behind them, newest first."""
    sweep(folder)
    for checkpoint in reversed(list_checkpoints(folder)):
        if checkpoint.rollout > after:
            remove_checkpoint(checkpoint)
