"""A whole run: evaluate, train, evaluate again, and leave a folder that says what happened."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from difalign.core.config import RunConfig
from difalign.report.diagnostics import Diagnostics
from difalign.report.log import RunLog
from difalign.report.records import Evaluation
from difalign.report.run_folder import read_run
from difalign.report.statistics import summarise_gain
from difalign.report.table import summary_table
from difalign.train.alarms import Alarms
from difalign.train.best import best_files, return_best
from difalign.train.checkpoint import save_checkpoint
from difalign.train.diagnostics import Pictures
from difalign.train.disk import disk_failure, refused_by_disk
from difalign.train.dry_run import fit_micro_batches
from difalign.train.evaluation import EvaluationPlan, EvaluationResult, evaluate
from difalign.train.interrupt import Interrupted, SignalWatch
from difalign.train.opening import check_launch, check_task, describe, open_log, remove_checkpoints
from difalign.train.policy_gradient import PolicyGradient
from difalign.train.progress import ProgressView, progress_view
from difalign.train.resume import RUN_FILE, ResumePoint, RunState, read_run_state
from difalign.train.roll_call import call_roll
from difalign.train.run_guards import RunGuards
from difalign.train.runtime import Runtime
from difalign.train.state import read_trainer_state, write_json
from difalign.train.task import Task
from difalign.train.tracking import Tracking, open_tracking
from difalign.train.vital_signs import VitalSigns

_LAUNCHER_SECONDS = 1.0  # within which a launcher passes on a signal that the terminal has sent to all processes


def run_training(
    config: RunConfig, build: Callable[[Runtime], Task], *, resume: ResumePoint | None = None
) -> dict[str, Any]:
    """Run a checked configuration from beginning to end and return its summary (on every process).

    Args:
        config: the whole run; ``overwrite`` replaces what an earlier run left in its folder.
        build: makes the objects on this process's device.
        resume: where to go on, as ``find_resume_point`` says; the main process's counts.

    Raises:
        ConfigError: if the processes differ, the run folder cannot be written, seen by all, or hold the run, or the
            checkpoint is of other weights; nothing in the folder is touched then. If the disk can no longer be written;
            what was written so far stays.
        RuntimeError, FloatingPointError: if a guard stops the run; what was written so far stays.
        ProcessLost: if another process is gone; the same.
        Interrupted: if SIGINT or SIGTERM came to any process; a checkpoint is saved.
    """
    runtime = Runtime(mixed_precision=config.training.mixed_precision, wait_seconds=config.processes.wait_seconds)
    try:
        check_launch(config, runtime)
        call_roll(config, runtime)
        signs = VitalSigns(runtime, silence=config.processes.silence_seconds)
        summary = _train_together(config, build, resume, runtime, signs)
    except Interrupted:  # by all processes together
        runtime.close()
        raise
    except BaseException as error:
        runtime.close(failed=True)
        if isinstance(error, Exception) and refused_by_disk(error):
            raise disk_failure(error, config) from error
        raise
    runtime.close()
    return summary


def _train_together(
    config: RunConfig,
    build: Callable[[Runtime], Task],
    resume: ResumePoint | None,
    runtime: Runtime,
    signs: VitalSigns,
) -> dict[str, Any]:
    """What processes do that have answered the roll: they listen for one another until all are through."""
    with signs:
        try:
            summary = _build_and_run(config, build, resume, runtime, signs)
        except Interrupted:  # by all together, but the main one has a checkpoint to write: none leaves before it
            signs.stage("leaving")
            runtime.barrier()
            raise
        signs.stage("leaving")
        runtime.barrier()
        return summary


def _build_and_run(
    config: RunConfig,
    build: Callable[[Runtime], Task],
    resume: ResumePoint | None,
    runtime: Runtime,
    signs: VitalSigns,
) -> dict[str, Any]:
    signs.stage("loading")
    task = build(runtime)  # before the folder is touched: a model that cannot be loaded costs no earlier run
    check_task(config, runtime, task)
    runtime.shard(task.pipeline.tuning.networks())
    point = runtime.agree(resume)
    with progress_view(is_main=runtime.is_main) as view:
        fitting = config
        if point is None or point.checkpoint.rollout < config.training.rollouts:
            fitting = fit_micro_batches(config, task.pipeline, task.prompts, task.plans(0), runtime, say=view.note)
        log = open_log(config, runtime, point) if runtime.is_main else None
        with (
            open_tracking(
                config, is_main=runtime.is_main, resumed_at=None if point is None else point.updates
            ) as tracking,
            _watch(runtime, view) as watch,
        ):
            return _Run(config, fitting, task, runtime, signs, log, view, tracking, watch, point).run()


def _watch(runtime: Runtime, view: ProgressView) -> SignalWatch:
    return SignalWatch(view.note, grace=_LAUNCHER_SECONDS if runtime.world > 1 else 0.0)


@dataclass
class _Run:
    config: RunConfig
    fitting: RunConfig  # the same with micro-batches that fit the memory
    task: Task
    runtime: Runtime
    signs: VitalSigns
    log: RunLog | None
    view: ProgressView
    tracking: Tracking
    watch: SignalWatch
    point: ResumePoint | None
    started: float = field(default_factory=time.perf_counter)
    training_seconds: float = 0.0
    evaluation_forwards: int = 0  # of all evaluations and processes
    evaluated: set[int] = field(default_factory=set)  # rollouts after which there was an evaluation
    resumed_at: tuple[int, ...] = ()  # rollouts
    saved: int | None = None  # rollouts of the newest checkpoint
    alarms: Alarms = field(init=False)
    guards: RunGuards = field(init=False)

    def __post_init__(self) -> None:
        write = None if self.log is None else self.log.append_alarm
        self.alarms = Alarms(write=write, show=self.view.note)
        self.guards = RunGuards(
            self.config,
            self.task.pipeline,
            self.task.heldout,
            runtime=self.runtime,
            alarms=self.alarms,
            view=self.view,
        )

    def run(self) -> dict[str, Any]:
        trainer = PolicyGradient(
            self.task.pipeline,
            self.task.reward,
            self.task.prompts,
            plans=self.task.plans,
            config=self.fitting,
            runtime=self.runtime,
            alarms=self.alarms,
            diagnostics=self._keep_diagnostics,
        )
        base = self._go_on(trainer, self.point) if self.point is not None else self._evaluate(trainer, 0, "base")
        rollouts = self._train(trainer, base)
        tuned = self._evaluate(trainer, rollouts, "tuned")
        self._export(trainer, rollouts)
        summary = summarise_gain(
            base.records,
            tuned.records,
            seed=self.config.seed,
            resamples=self.config.evaluation.bootstrap_samples,
        )
        summary |= {
            "name": self.config.name,
            "pipeline": self.config.pipeline,
            "seed": self.config.seed,
            "rollouts": rollouts,
            "updates": trainer.updates,
            "seconds": time.perf_counter() - self.started,
            "training_seconds": self.training_seconds,
            "denoiser_forwards": trainer.forwards,
            "reward_calls": trainer.reward_calls,
            "evaluation_forwards": self.evaluation_forwards,
            "processes": self.runtime.world,
            "resumed_at": list(self.resumed_at),
            **self.guards.summary(),
        }
        if self.log is not None:
            from difalign.report.page import write_report

            self.log.write_summary(summary)
            self.view.show(summary_table(summary))
            self.view.note(f"report: {write_report(self.config.run_folder)}")
        return summary

    def _go_on(self, trainer: PolicyGradient, point: ResumePoint) -> Evaluation:
        """Take up the state of a checkpoint; returns the scores before training.

        The folder is taken back to the checkpoint only once its state has been accepted.
        """
        folder = point.checkpoint.folder
        state = read_run_state(folder)
        before = self._measure(trainer, 0, "base") if point.measure_base else None  # the weights are still the old ones
        trainer.restore(read_trainer_state(folder))
        self.started -= state.seconds
        self.training_seconds = state.training_seconds
        self.evaluation_forwards += state.evaluation_forwards
        self.evaluated = {int(name[:6]) for name in state.mark.evaluations}
        self.resumed_at = (*state.resumed_at, state.rollouts)
        self.saved = state.rollouts
        self.view.note(f"resumed from {folder}, after {state.rollouts} of {self.config.training.rollouts} rollouts")
        for line in point.skipped:
            self.view.note(f"skipped a damaged checkpoint, {line}")
        for line in point.changes:
            self.view.note(f"changed: {line}")
        if self.log is not None:
            remove_checkpoints(self.config.run_folder, after=state.rollouts)
            self.log.return_to(state.mark)
            describe(self.config, self.runtime, self.log)
            return_best(self.config.run_folder, folder)
        given = read_run(self.config.run_folder).alarms if self.log is not None else ()
        best = None if before is not None else state.best or state.base
        self.guards.restore(trainer, state.guards, best=best, given=self.runtime.agree(given))
        if before is None:
            return state.base
        self._record(trainer, before)
        return before.evaluation

    def _train(self, trainer: PolicyGradient, base: Evaluation) -> int:
        """Rollouts until there have been enough, the time is up or a signal came; returns how many."""
        training, every = self.config.training, self.config.training.checkpoint.every
        done = self.saved or 0
        started = time.perf_counter() - self.training_seconds
        while True:
            self.training_seconds = time.perf_counter() - started
            over = done > 0 and training.max_seconds is not None and self.training_seconds >= training.max_seconds
            finished = done >= training.rollouts or self.runtime.agree(over)
            if not finished and self._evaluation_is_due(done) and not self._signal():
                self._evaluate(trainer, done, "training")
            self.guards.turn_back(trainer, done)
            signum = self._signal()
            if finished or signum or (every and done % every == 0):
                self._save_checkpoint(trainer, done, base)
            if signum:
                raise Interrupted(
                    f"after {done} of {training.rollouts} rollouts; go on with the same command and resume=latest",
                    signum,
                )
            if finished:
                return done
            self.signs.stage("sampling")
            rows = trainer.run(done, self._phase)
            seconds, rate = time.perf_counter() - started, trainer.learning_rate
            for row in rows:
                timed = {**row, "seconds": seconds, "learning_rate": rate}
                if self.log is not None:
                    self.log.append_metrics(timed)
                self.tracking.figures(timed)
            self.guards.rows(rows)
            done += 1
            self.view.run(done, training.rollouts, _figures(rows[-1]))

    def _phase(self, name: str, done: int, total: int) -> None:
        self.signs.stage(name)
        self.view.phase(name, done, total)

    def _keep_diagnostics(self, diagnostics: Diagnostics, pictures: Sequence[Pictures]) -> None:
        if self.log is not None:
            self.log.write_diagnostics(diagnostics, pictures)

    def _signal(self) -> int:
        """The number of a signal that any process has received, the same on all; 0 if none has."""
        return max(self.runtime.gather([self.watch.received]))

    def _evaluation_is_due(self, done: int) -> bool:
        every = self.config.evaluation.every
        return bool(every) and done > 0 and done % every == 0 and done not in self.evaluated

    def _save_checkpoint(self, trainer: PolicyGradient, done: int, base: Evaluation) -> None:
        """Everything after ``done`` rollouts; written by the main process, to which the others give their parts."""
        if done == self.saved:
            return
        self.saved = done
        self.signs.stage("saving")
        trained = trainer.state()
        if self.log is None:
            return
        state = RunState(
            config=self.config.model_dump(mode="json"),
            fingerprints=self.task.fingerprints,
            rollouts=done,
            updates=trainer.updates,
            seconds=time.perf_counter() - self.started,
            training_seconds=self.training_seconds,
            evaluation_forwards=self.evaluation_forwards,
            base=base,
            mark=self.log.mark(),
            resumed_at=self.resumed_at,
            best=self.guards.best,
            guards=self.guards.state(trainer),
        )
        files = {**trained.files(), RUN_FILE: partial(write_json, state.to_json())}
        if self.guards.best is not None:
            files |= best_files(self.config.run_folder)
        save_checkpoint(self.config.run_folder, done, files, keep=self.config.training.checkpoint.keep)

    def _evaluate(self, trainer: PolicyGradient, rollout: int, label: str) -> Evaluation:
        """Held-out prompts under the averaged weights, written to the run folder."""
        result = self._measure(trainer, rollout, label)
        self._record(trainer, result)
        return result.evaluation

    def _measure(self, trainer: PolicyGradient, rollout: int, label: str) -> EvaluationResult:
        options = self.fitting.evaluation
        pipeline = self.task.pipeline.with_guidance(options.guidance)
        self.signs.stage("evaluating")
        trainer.check_weights(pipeline, before=f"evaluation {label}")
        with trainer.averaged(), self.runtime.whole_network():
            result = evaluate(
                pipeline,
                self.task.reward,
                self.task.heldout[: options.limit],
                EvaluationPlan(
                    options.steps,
                    options.seeds_per_prompt,
                    options.micro_batch,
                    max_failed=self.config.guards.max_failed,
                ),
                self.runtime,
                rollout_index=rollout,
                label=label,
                progress=lambda done, total: self.view.phase("evaluating", done, total),
            )
        trainer.check_weights(pipeline, before=f"going on after evaluation {label}")
        self.evaluation_forwards += result.forwards
        return result

    def _record(self, trainer: PolicyGradient, result: EvaluationResult) -> None:
        """Write an evaluation down, show it, and see what it says about the run."""
        evaluation = result.evaluation
        self.evaluated.add(evaluation.rollout)
        step = trainer.updates if evaluation.rollout else 0
        self.tracking.evaluation(evaluation, step=step, images=result.images, shown=result.shown)
        if self.log is not None:
            self.log.write_evaluation(evaluation, images=result.images, shown=result.shown)
            scored = len(evaluation.totals)
            self.view.note(f"held-out {evaluation.label}: {evaluation.mean:.4f} over {scored} samples")
        self.guards.evaluation(trainer, evaluation)

    def _export(self, trainer: PolicyGradient, rollouts: int) -> None:
        if trainer.average is not None and not trainer.average.taken:
            every = self.config.training.ema.every
            self.view.note(f"fewer than training.ema.every={every} steps were taken: the weights are saved unaveraged")
        self.signs.stage("saving")
        self.guards.export(trainer, rollouts)
        trainer.check_weights(self.task.pipeline, before="the end")


def _figures(row: dict[str, float]) -> str:
    kl = f"  kl {row['kl']:.2e}" if "kl" in row else ""
    gradient = f"grad {row['grad_norm']:.2e}" if "grad_norm" in row else "skipped"
    return f"reward {row['reward']:.4f}  clip {row.get('clip_fraction', 0.0):.3f}  {gradient}{kl}"
