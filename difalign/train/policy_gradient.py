"""Policy-gradient training on recorded rollout steps: Flow-GRPO and every other plan of the engine.

One rollout phase samples and scores (``difalign.train.collector``) and compares (``difalign.train.comparison``). Then
come the updates it feeds, each the gradient of a loss over recorded edges (``difalign.train.edge_loss``) and one step
of the optimiser (``difalign.train.optimisation``). The first update is on-policy, so its importance ratios are exactly
1; the later ones are what the clipped surrogate is for.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import final

import torch
from torch import Tensor

from difalign.core.config import RunConfig
from difalign.core.prompts import Prompt
from difalign.core.protocols import Pipeline, RewardModel, TrainablePipeline
from difalign.core.types import NoiseGrid
from difalign.objective.advantages import Advantages
from difalign.report.alarms import Alarm
from difalign.train.alarms import Alarms
from difalign.train.collector import Batch, Collector, PlanSchedule, Report
from difalign.train.comparison import Comparison
from difalign.train.diagnostics import StepWatch, WriteDiagnostics
from difalign.train.edge_loss import EdgeLoss
from difalign.train.ema import MovingAverage
from difalign.train.faults import Fault, has_finite_gradients, locate_fault, skip_alarm, spoil_gradients
from difalign.train.fingerprint import WeightSeal
from difalign.train.meters import Meter
from difalign.train.optimisation import Optimisation, Step
from difalign.train.partition import Part, kept_figures, partition
from difalign.train.runtime import Runtime
from difalign.train.state import TrainerState

_MAX_OVERFLOWS = 20  # float16 steps skipped in a row; halving the loss scale that often leaves it below 1
# What rounding may do to a ratio in float32, where batches of another size run through other kernels: least and most.
_ROUNDING, _MOST_ROUNDING = 1e-6, 1e-4


@final
class PolicyGradient:
    """Turns rollouts into updates of a pipeline's trainable weights."""

    def __init__(
        self,
        pipeline: TrainablePipeline,
        reward: RewardModel,
        prompts: Sequence[Prompt],
        *,
        plans: PlanSchedule,
        config: RunConfig,
        runtime: Runtime,
        alarms: Alarms | None = None,
        diagnostics: WriteDiagnostics | None = None,
    ) -> None:
        self.alarms = Alarms() if alarms is None else alarms
        self._config = config
        self._runtime = runtime
        self._pipeline = pipeline
        self._grid: NoiseGrid = pipeline.grid(config.sampling.steps)
        self._collector = Collector(
            pipeline, reward, prompts, plans=plans, config=config, runtime=runtime, grid=self._grid
        )
        self._comparison = Comparison(config.objective, runtime)
        self._loss = EdgeLoss(pipeline, config=config, runtime=runtime, grid=self._grid)
        self._optimisation = Optimisation(pipeline, config=config.training, runtime=runtime)
        self._watch = StepWatch(
            pipeline,
            self._loss,
            self._optimisation.parameters,
            chunks=self._chunks,
            accompany=self._accompany,
            plans=plans,
            config=config,
            runtime=runtime,
            grid=self._grid,
            write=diagnostics,
        )
        self._seal = WeightSeal(self._optimisation.parameters)
        self._seal.close()
        self._skipped = 0  # updates in a row that gave no finite number
        self._overflows = 0  # steps in a row that float16's loss scaling skipped
        self.updates = 0

    @property
    def learning_rate(self) -> float:
        """Of the updates to come."""
        return self._optimisation.learning_rate

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        self._optimisation.learning_rate = value

    @property
    def average(self) -> MovingAverage | None:
        """The moving average of the weights, if the run keeps one."""
        return self._optimisation.average

    @property
    def forwards(self) -> int:
        """Network rows of sampling so far, of all processes."""
        return self._collector.forwards

    @property
    def reward_calls(self) -> int:
        """Samples scored so far, of all processes."""
        return self._collector.reward_calls

    def run(self, index: int, report: Report) -> list[dict[str, float]]:
        """One rollout and its updates; a row of metrics an update, the same on every process."""
        self.check_weights(self._pipeline, before="sampling")
        with self._runtime.whole_network():
            batches = self._collector.collect(index, report)
        advantages = self._comparison.advantages(batches)
        self.check_weights(self._pipeline, before="the updates")
        figures = self._figures(index, batches, advantages)
        parts = partition(batches, advantages, self._config, self._runtime, update=self.updates)
        if self._watch.is_due(index):
            self._watch.begin(index, batches, parts[0], update=self.updates, report=report)
        rows: list[dict[str, float]] = []
        for part in parts:
            rows.append(self._update(index, part, on_policy=not rows, report=report) | figures)
        self._watch.end(index, batches)
        self._seal_weights(index, rows)
        return rows

    def check_weights(self, pipeline: Pipeline, *, before: str) -> None:
        """Check that ``pipeline`` predicts with the trained weights, as the last update left them, to the last bit.

        Raises:
            RuntimeError: if something else has written to them, or they are not its own; ``before`` says when.
        """
        if self._config.guards.enabled:
            self._seal.check(pipeline.network, self._pipeline.tuning.trainable_parameters(), phase=before)

    def averaged(self) -> AbstractContextManager[None]:
        """Inside, the pipeline holds the moving average, once there is one; afterwards the trained weights again."""
        average = self.average
        return average.applied() if average is not None and average.taken else contextlib.nullcontext()

    # --- its state ----------------------------------------------------------------------------------------------

    def state(self) -> TrainerState:
        """All that later rollouts depend on; to be read before the next update, which changes the tensors.

        All processes must ask; the main one gets the whole.
        """
        counters = {
            "updates": self.updates,
            "denoiser_forwards": self.forwards,
            "reward_calls": self.reward_calls,
            "overflows": self._overflows,
            "skipped": self._skipped,
        }
        return replace(
            self._optimisation.state(counters),
            prompt_rewards=self._comparison.prompt_rewards,
            reward_moments=self._collector.combination.moments,
        )

    def restore(self, state: TrainerState) -> None:
        """Go on from ``state``; an average that it does not hold begins at its weights.

        Raises:
            ConfigError: if it is the state of other weights than these.
        """
        self.return_to(state)
        self.updates = state.counters["updates"]
        self._collector.forwards = state.counters["denoiser_forwards"]
        self._collector.reward_calls = state.counters["reward_calls"]
        self._overflows = state.counters["overflows"]
        self._skipped = state.counters["skipped"]

    def return_to(self, state: TrainerState) -> None:
        """Take weights, moments, average and kept rewards from ``state``; what was counted since stays counted.

        Raises:
            ConfigError: if it is the state of other weights than these.
        """
        self._optimisation.restore(state)
        self._comparison.restore(state.prompt_rewards)
        self._collector.combination.restore(state.reward_moments)
        self._seal.close()

    # --- updating -----------------------------------------------------------------------------------------------

    def _figures(self, index: int, batches: Sequence[Batch], advantages: Sequence[Advantages]) -> dict[str, float]:
        """What there is to say about the rollout as a whole."""
        figures = kept_figures(batches, advantages, self._runtime)
        if self._config.curriculum is not None:
            figures["interval_start"] = self._config.interval(index).start
        return figures

    def _update(self, index: int, part: Part, *, on_policy: bool, report: Report) -> dict[str, float]:
        meter = Meter(self._runtime)
        meter.rewards(part.batch.rewards, part.advantages)
        meter.distances(part.batch.distances)
        step = self._descend(index, part, meter=meter, report=report) if part.count else None
        row = meter.row()
        if on_policy and step is not None and step.taken:
            self._check_first_update(row, step, index)
        if step is not None and not step.taken:
            del row["grad_norm"]  # there is none to speak of
        row |= {"rollout": index, "update": self.updates, "rows": part.count}
        row |= {"denoiser_forwards": self.forwards, "reward_calls": self.reward_calls}
        self.updates += 1
        return row

    def _descend(self, index: int, part: Part, *, meter: Meter, report: Report) -> Step:
        """One optimiser step down the loss of a part."""
        faults: list[Fault] = []
        batch, advantage = part.batch, part.advantages.advantage
        weights = self._loss.step_weights(batch)
        chunks = self._chunks(part.rows)
        report("training", 0, len(chunks))
        for done, rows in enumerate(chunks):
            if not rows.numel():
                self._accompany(batch, weights)
                continue
            loss = self._loss.chunk(batch, advantage, rows, weights=weights, total=part.total)
            finite = bool(loss.loss.isfinite())
            self._optimisation.backward(loss.loss)  # if it is not finite too: every process makes the same calls
            if not finite:
                faults.append(self._fault("loss", batch, rows))
            elif not faults and not self._gradient_is_finite():
                faults.append(self._fault("gradient", batch, rows))
            if finite:
                meter.chunk(loss.surrogate, loss.divergence, loss.loss)
                self._watch.chunk(self.updates, batch, rows, loss.surrogate)
            report("training", done + 1, len(chunks))
        if any(fault.what == "loss" for fault in faults):
            spoil_gradients(self._optimisation.parameters)
        step = self._optimisation.step()
        if step.taken:
            self._skipped = self._overflows = 0
            meter.gradient(step.norm)
        else:
            self._skip(index, self._runtime.gather(faults[:1]), step)
        return step

    def _chunks(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Rows in micro-batches; as many on every process, if need be empty, where a forward takes all of them."""
        together = 2 if self._config.objective.surrogate == "pair" else 1
        units = rows.view(-1, together)
        count = -(-len(units) // (self._config.training.micro_batch // together))
        chunks = _even_chunks(units, self._runtime.most(count) if self._runtime.shards else count)
        return tuple(chunk.flatten() for chunk in chunks)

    def _accompany(self, batch: Batch, weights: Tensor) -> None:
        """A forward and backward that counts for nothing: others train, and gather this process's part of the weights.

        The first recorded edge, twice since a loss may be of pairs, without advantage, divided by infinity.
        """
        nothing = torch.zeros_like(batch.scored.trajectories.log_prob)
        first = torch.zeros(2, dtype=torch.int64)
        part = self._loss.chunk(batch, nothing, first, weights=weights, total=math.inf)
        self._optimisation.backward(part.loss)

    # --- guards -------------------------------------------------------------------------------------------------

    def _gradient_is_finite(self) -> bool:
        """Asked after every micro-batch, so that it can be named; float16's loss scaling overflows on purpose."""
        if not self._config.guards.enabled or self._config.training.mixed_precision == "fp16":
            return True
        return has_finite_gradients(self._optimisation.parameters)

    def _fault(self, what: str, batch: Batch, rows: Tensor) -> Fault:
        return locate_fault(what, batch, rows, self._grid, rank=self._runtime.rank)

    def _skip(self, index: int, faults: Sequence[Fault], step: Step) -> None:
        """Count a step that was not taken; too many in a row stop the run, on every process."""
        if not faults and self._config.training.mixed_precision == "fp16":  # the loss scale was too large
            self._overflows += 1
            if self._overflows >= _MAX_OVERFLOWS:
                raise FloatingPointError(
                    f"the gradient norm overflowed {_MAX_OVERFLOWS} times in a row at rollout {index}, update "
                    f"{self.updates}; lower training.learning_rate, or train in float32 (training.mixed_precision=no)"
                )
            return
        self._skipped += 1
        most = self._config.guards.max_skipped
        alarm = skip_alarm(faults, norm=step.norm, rollout=index, update=self.updates, skipped=self._skipped, most=most)
        self.alarms.give(alarm)
        if self._skipped >= most:
            raise FloatingPointError(alarm.line)

    def _check_first_update(self, row: dict[str, float], step: Step, index: int) -> None:
        """The first update is on-policy, so every ratio must be 1: exactly in float32. And it has a gradient."""
        exact = self._config.training.mixed_precision == "no" and self._config.sampling.storage_dtype == "float32"
        allowed = self._config.objective.clip_range / 10
        if exact:
            allowed = min(max(allowed, _ROUNDING), _MOST_ROUNDING)
        deviation = row["ratio_max_deviation"]
        if deviation > allowed:
            self._stop(
                "first_ratio",
                index,
                f"the importance ratio of the first update deviates from 1 by {deviation:.3g}, above {allowed:.3g}: "
                "sampling and training do not evaluate the same policy",
                "give sampling and training the same micro_batch, and check that the network holds no dropout",
            )
        if self._config.guards.enabled and step.norm == 0.0 and row["zero_variance_groups"] < 1.0:
            self._stop(
                "weights_still",
                index,
                "no gradient reaches the trained weights although samples were told apart: the gradient norm is 0",
                "check that the network which predicts holds the weights that are trained, with gradient enabled",
            )

    def _seal_weights(self, index: int, rows: Sequence[dict[str, float]]) -> None:
        """Remember the weights that the updates left; they must have moved if there was a gradient."""
        if not self._config.guards.enabled:
            return
        before, after = self._seal.value, self._seal.close()
        norm = max((row.get("grad_norm", 0.0) for row in rows), default=0.0)
        moved = [before != after]
        if self._runtime.shards:  # a process's own part may stand still
            moved = self._runtime.gather(moved)
        if norm > 0 and not any(moved):
            self._stop(
                "weights_still",
                index,
                f"no weight moved although the gradient norm is {norm:.3g}",
                "raise training.learning_rate",
            )

    def _stop(self, name: str, index: int, seen: str, remedy: str) -> None:
        alarm = Alarm(name, index, self.updates, seen=seen, remedy=remedy)
        self.alarms.give(alarm)
        raise RuntimeError(alarm.line)


def _even_chunks(rows: Tensor, count: int) -> tuple[Tensor, ...]:
    """Chunks of nearly equal size: a remainder of one or two rows would run through other kernels."""
    return rows.tensor_split(count) if count else ()
