"""What a run does about itself: it watches for drift, keeps the best weights, reads back what it saves, turns back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, final

from difalign.core.config import RunConfig
from difalign.core.prompts import Prompt
from difalign.core.protocols import TrainablePipeline
from difalign.report.alarms import Alarm
from difalign.report.records import Evaluation
from difalign.train.alarms import Alarms
from difalign.train.best import BEST_FOLDER, keep_best
from difalign.train.checkpoint import Checkpoint, find_damage, list_checkpoints
from difalign.train.drift import DriftWatch
from difalign.train.export import Weights, check_export, export_folder, save_trained
from difalign.train.policy_gradient import PolicyGradient
from difalign.train.progress import ProgressView
from difalign.train.runtime import Runtime
from difalign.train.state import read_trainer_state


@final
class RunGuards:
    """The guards of a run beyond those of single updates; every process has them and decides the same."""

    def __init__(
        self,
        config: RunConfig,
        pipeline: TrainablePipeline,
        heldout: Sequence[Prompt],
        *,
        runtime: Runtime,
        alarms: Alarms,
        view: ProgressView,
    ) -> None:
        self._config = config
        self._pipeline = pipeline
        self._heldout = [prompt.text for prompt in heldout]
        self._runtime = runtime
        self._alarms = alarms
        self._view = view
        self._drift = DriftWatch(config, alarms)
        self._answered = 0  # alarms that the run has seen to
        self._returns: list[list[int]] = []  # [rollouts done, rollouts of the checkpoint]

    # --- what it remembers --------------------------------------------------------------------------------------

    @property
    def best(self) -> Evaluation | None:
        """The best evaluation so far; None if that is the one before training."""
        best = self._drift.best
        return None if best is None or best.rollout == 0 else best

    def state(self, trainer: PolicyGradient) -> dict[str, Any]:
        """What ``restore`` needs, as plain containers."""
        return {"drift": self._drift.state(), "returns": self._returns, "learning_rate": trainer.learning_rate}

    def restore(
        self, trainer: PolicyGradient, state: Mapping[str, Any], *, best: Evaluation | None, given: Sequence[Alarm]
    ) -> None:
        """Go on from what ``state`` once was; ``given`` are the alarms before it."""
        self._drift.restore(state["drift"], best=best)
        self._returns = [list(pair) for pair in state["returns"]]
        if self._returns:
            trainer.learning_rate = state["learning_rate"]
        self._alarms.restore(given)
        self._answered = len(self._alarms.given)

    def summary(self) -> dict[str, Any]:
        """What ``summary.json`` says of it."""
        found: dict[str, Any] = {"alarms": self._alarms.counts}
        best = self._drift.best
        if best is not None and self._config.guards.keep_best:
            folder = BEST_FOLDER if best.rollout else None
            found["best"] = {"rollout": best.rollout, "score": best.mean, "folder": folder}
        return found | ({"returns": self._returns} if self._returns else {})

    # --- what it does -------------------------------------------------------------------------------------------

    def rows(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Look at the updates of a rollout."""
        for row in rows:
            self._drift.row(row)

    def evaluation(self, trainer: PolicyGradient, evaluation: Evaluation) -> None:
        """Look at an evaluation; the weights of the best one are kept."""
        self._drift.evaluation(evaluation, update=trainer.updates)
        if not (self._config.guards.keep_best and self._drift.best is evaluation and evaluation.rollout):
            return
        run_folder = self._config.run_folder
        self._save(trainer, lambda weights: keep_best(run_folder, partial(self._write, weights=weights)))
        self._read_back(trainer, run_folder / BEST_FOLDER, evaluation.rollout)

    def export(self, trainer: PolicyGradient, rollouts: int) -> None:
        """Write the averaged weights into the run's folder, as diffusers reads them, and read them back."""
        folder = export_folder(self._config, self._config.run_folder)
        self._save(trainer, partial(self._write, folder))
        self._read_back(trainer, folder, rollouts)

    def turn_back(self, trainer: PolicyGradient, done: int) -> None:
        """Return to an earlier checkpoint if an alarm was given that asks for it; rollouts are counted on.

        A fall of the held-out score goes back to before the best evaluation's end, any other alarm to the newest sound
        checkpoint.
        """
        fresh, self._answered = self._alarms.given[self._answered :], len(self._alarms.given)
        names = {alarm.name for alarm in fresh} & set(self._config.guards.rollback)
        if not names:
            return
        best = self.best
        latest = best.rollout if "heldout_drift" in names and best is not None else done
        found = self._sound_checkpoint(latest) if self._runtime.is_main else None
        checkpoint = self._runtime.agree(found)
        if checkpoint is None:
            self._view.note(
                f"no sound checkpoint of at most {latest} rollouts to return to; lower training.checkpoint.every"
            )
            return
        trainer.return_to(read_trainer_state(checkpoint.folder))
        trainer.learning_rate *= self._config.guards.rollback_factor
        self._returns.append([done, checkpoint.rollout])
        self._view.note(
            f"returned to the weights of {checkpoint.folder}, learning rate {trainer.learning_rate:.3g}, because of "
            f"{', '.join(sorted(names))}"
        )

    def _save(self, trainer: PolicyGradient, write: Callable[[Weights | None], object]) -> None:
        """Let the main process write the averaged weights; where they are in parts, all others give theirs."""
        with trainer.averaged():
            weights = self._runtime.collect(self._pipeline.network.state_dict()) if self._runtime.shards else None
            if self._runtime.is_main:
                write(weights)

    def _write(self, folder: Path, weights: Weights | None) -> None:
        save_trained(self._pipeline, self._config, folder, weights)

    def _sound_checkpoint(self, latest: int) -> Checkpoint | None:
        for checkpoint in reversed(list_checkpoints(self._config.run_folder)):
            if checkpoint.rollout <= latest and find_damage(checkpoint) is None:
                return checkpoint
        return None

    def _read_back(self, trainer: PolicyGradient, folder: Path, rollouts: int) -> None:
        """An alarm, on every process, if others will get other pictures from the saved weights."""
        if not (self._config.guards.enabled and self._config.guards.reload):
            return
        alarm = None
        with trainer.averaged(), self._runtime.whole_network():
            if self._runtime.is_main:
                alarm = check_export(
                    self._pipeline, folder, self._heldout, self._config, done=rollouts, update=trainer.updates
                )
        alarm = self._runtime.agree(alarm)
        if alarm is not None:
            self._alarms.give(alarm)
