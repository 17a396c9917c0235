"""A whole run: evaluate, train, evaluate again, and leave a folder that says what happened."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from difalign.core.config import RunConfig
from difalign.core.config_yaml import to_yaml
from difalign.core.prompts import Prompt
from difalign.core.protocols import RewardModel, TrainablePipeline
from difalign.report.environment import describe_environment
from difalign.report.log import RunLog
from difalign.report.statistics import summarise_gain
from difalign.report.table import summary_table
from difalign.train.evaluation import EvaluationPlan, EvaluationResult, evaluate
from difalign.train.policy_gradient import PlanSchedule, PolicyGradient
from difalign.train.progress import ProgressView, progress_view
from difalign.train.roll_call import call_roll, check_space, prompt_facts, require_same, written_bytes
from difalign.train.runtime import Runtime
from difalign.train.tracking import Tracking, open_tracking

_LORA_FILE = "pytorch_lora_weights.safetensors"  # as diffusers names it
_NETWORK_FOLDER = "network"


@dataclass(frozen=True, slots=True)
class Task:
    """The objects a run works on, built from its configuration."""

    pipeline: TrainablePipeline  # guidance as in training, adapters attached
    reward: RewardModel
    prompts: Sequence[Prompt]
    heldout: Sequence[Prompt]
    plans: PlanSchedule


def run_training(config: RunConfig, build: Callable[[Runtime], Task]) -> dict[str, Any]:
    """Run a checked configuration from beginning to end and return its summary (on every process).

    Args:
        config: the whole run; ``overwrite`` replaces what an earlier run left in its folder.
        build: makes the objects on this process's device.

    Raises:
        ConfigError: if the processes differ, or the run folder cannot be written, seen by all, or hold the run.
        RuntimeError, FloatingPointError: if a guard stops the run; what was written so far stays.
    """
    runtime = Runtime(mixed_precision=config.training.mixed_precision)
    try:
        call_roll(config, runtime)
        task = build(runtime)  # before the folder is touched: a model that cannot be loaded costs no earlier run
        _check_task(config, runtime, task)
        log = _open_log(config, runtime) if runtime.is_main else None
        with (
            progress_view(is_main=runtime.is_main) as view,
            open_tracking(config, is_main=runtime.is_main) as tracking,
        ):
            summary = _Run(config, task, runtime, log, view, tracking).run()
    except BaseException:
        runtime.close(failed=True)
        raise
    runtime.close()
    return summary


def _check_task(config: RunConfig, runtime: Runtime, task: Task) -> None:
    """What can only be asked once the objects are there: the same prompts everywhere, and room for the weights."""
    require_same(runtime, prompt_facts({"prompts.train": task.prompts, "prompts.heldout": task.heldout}))
    weights = sum(parameter.numel() * parameter.element_size() for parameter in task.pipeline.trainable_parameters())
    heldout = len(task.heldout[: config.evaluation.limit])
    check_space(runtime, config.run_folder, written_bytes(config, weights=weights, heldout=heldout))


def _open_log(config: RunConfig, runtime: Runtime) -> RunLog:
    log = RunLog(config.run_folder)
    if config.overwrite:
        log.clear()
        _remove_weights(config.run_folder)
    log.write_config(to_yaml(config))
    log.write_environment(describe_environment(processes=runtime.world))
    return log


def _remove_weights(folder: Path) -> None:
    """Remove what ``_Run._save`` of an earlier run wrote: a run that fails must not leave another's weights behind."""
    (folder / _LORA_FILE).unlink(missing_ok=True)
    network = folder / _NETWORK_FOLDER
    for path in (network / "config.json", *network.glob("diffusion_pytorch_model*")):
        path.unlink(missing_ok=True)


@dataclass
class _Run:
    config: RunConfig
    task: Task
    runtime: Runtime
    log: RunLog | None
    view: ProgressView
    tracking: Tracking
    evaluation_forwards: int = 0  # of all evaluations and processes

    def run(self) -> dict[str, Any]:
        started = time.perf_counter()
        trainer = PolicyGradient(
            self.task.pipeline,
            self.task.reward,
            self.task.prompts,
            plans=self.task.plans,
            config=self.config,
            runtime=self.runtime,
        )
        base = self._evaluate(trainer, 0, "base")
        training_started = time.perf_counter()
        rollouts = self._train(trainer, training_started)
        training_seconds = time.perf_counter() - training_started
        tuned = self._evaluate(trainer, rollouts, "tuned")
        self._save(trainer)
        summary = summarise_gain(
            base.evaluation.records,
            tuned.evaluation.records,
            seed=self.config.seed,
            resamples=self.config.evaluation.bootstrap_samples,
        )
        summary |= {
            "name": self.config.name,
            "pipeline": self.config.pipeline,
            "seed": self.config.seed,
            "rollouts": rollouts,
            "updates": trainer.updates,
            "seconds": time.perf_counter() - started,
            "training_seconds": training_seconds,
            "denoiser_forwards": trainer.forwards,
            "reward_calls": trainer.reward_calls,
            "evaluation_forwards": self.evaluation_forwards,
            "processes": self.runtime.world,
        }
        if self.log is not None:
            from difalign.report.page import write_report

            self.log.write_summary(summary)
            self.view.show(summary_table(summary))
            self.view.note(f"report: {write_report(self.config.run_folder)}")
        return summary

    def _train(self, trainer: PolicyGradient, started: float) -> int:
        """Rollouts until there have been enough or the time is up; returns how many."""
        training, every = self.config.training, self.config.evaluation.every
        for index in range(training.rollouts):
            rows = trainer.run(index, self.view.phase)
            seconds = time.perf_counter() - started
            for row in rows:
                timed = {**row, "seconds": seconds, "learning_rate": training.learning_rate}
                if self.log is not None:
                    self.log.append_metrics(timed)
                self.tracking.figures(timed)
            done = index + 1
            self.view.run(done, training.rollouts, _figures(rows[-1]))
            over = training.max_seconds is not None and seconds >= training.max_seconds
            if self.runtime.agree(over):
                return done
            if every and done % every == 0 and done < training.rollouts:
                self._evaluate(trainer, done, "training")
        return training.rollouts

    def _evaluate(self, trainer: PolicyGradient, rollout: int, label: str) -> EvaluationResult:
        """Held-out prompts under the averaged weights, written to the run folder."""
        options = self.config.evaluation
        with _averaged(trainer):
            result = evaluate(
                self.task.pipeline.with_guidance(options.guidance),
                self.task.reward,
                self.task.heldout[: options.limit],
                EvaluationPlan(options.steps, options.seeds_per_prompt, options.micro_batch),
                self.runtime,
                rollout_index=rollout,
                label=label,
                progress=lambda done, total: self.view.phase("evaluating", done, total),
            )
        self.evaluation_forwards += result.forwards
        self.tracking.evaluation(result.evaluation, step=trainer.updates, images=result.images, shown=result.shown)
        if self.log is not None:
            self.log.write_evaluation(result.evaluation, images=result.images, shown=result.shown)
            total = [record.scores["total"] for record in result.evaluation.records]
            self.view.note(f"held-out {label}: {sum(total) / len(total):.4f} over {len(total)} samples")
        return result

    def _save(self, trainer: PolicyGradient) -> None:
        """The averaged weights, as diffusers reads them."""
        if not self.runtime.is_main:
            return
        if trainer.average is not None and not trainer.average.taken:
            every = self.config.training.ema.every
            self.view.note(f"fewer than training.ema.every={every} steps were taken: the weights are saved unaveraged")
        with _averaged(trainer):
            if self.config.training.trainable == "lora":
                self.task.pipeline.save_lora(self.config.run_folder)
            else:
                self.task.pipeline.save_network(self.config.run_folder / _NETWORK_FOLDER)


def _averaged(trainer: PolicyGradient) -> AbstractContextManager[None]:
    """Inside, the pipeline holds the moving average, once there is one; afterwards the trained weights again."""
    average = trainer.average
    return average.applied() if average is not None and average.taken else contextlib.nullcontext()


def _figures(row: dict[str, float]) -> str:
    kl = f"  kl {row['kl']:.2e}" if "kl" in row else ""
    return f"reward {row['reward']:.4f}  clip {row.get('clip_fraction', 0.0):.3f}  grad {row['grad_norm']:.2e}{kl}"
