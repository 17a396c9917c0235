"""Policy-gradient training on recorded rollout steps: Flow-GRPO and every other plan of the engine.

One rollout phase samples, scores and compares (``difalign.train.collector``); then come the updates it feeds, each the
gradient of a loss over recorded edges (``difalign.train.edge_loss``) and one step of the optimiser
(``difalign.train.optimisation``). The first update is on-policy, so its importance ratios are exactly 1; the later ones
are what the clipped surrogate is for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn, final

import torch
from torch import Tensor

from difalign.core.config import RunConfig
from difalign.core.prompts import Prompt
from difalign.core.protocols import RewardModel, TrainablePipeline
from difalign.core.rng import generator
from difalign.core.types import NoiseGrid
from difalign.objective.advantages import Advantages, informative_rows
from difalign.train.collector import Batch, Collector, PlanSchedule, Report
from difalign.train.edge_loss import EdgeLoss
from difalign.train.ema import MovingAverage
from difalign.train.meters import Meter
from difalign.train.optimisation import Optimisation
from difalign.train.runtime import Runtime
from difalign.train.state import TrainerState

_ROUNDING = 1e-6  # float32 rounding of a ratio; anything above says that sampling and training differ


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
    ) -> None:
        self._config = config
        self._runtime = runtime
        self._grid: NoiseGrid = pipeline.grid(config.sampling.steps)
        self._collector = Collector(
            pipeline, reward, prompts, plans=plans, config=config, runtime=runtime, grid=self._grid
        )
        self._loss = EdgeLoss(pipeline, config=config, runtime=runtime, grid=self._grid)
        self._optimisation = Optimisation(pipeline, config=config.training, runtime=runtime)
        self.updates = 0

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
        batches = self._collector.collect(index, report)
        advantages = self._collector.compare(batches)
        rows: list[dict[str, float]] = []
        for epoch in range(self._config.training.inner_epochs):
            for batch, advantage in zip(batches, advantages, strict=True):
                first = not rows and epoch == 0
                rows.append(self._update(index, batch, advantage, on_policy=first, report=report))
        return rows

    # --- its state ----------------------------------------------------------------------------------------------

    def state(self) -> TrainerState:
        """All that later rollouts depend on; to be read before the next update, which changes the tensors."""
        counters = {"updates": self.updates, "denoiser_forwards": self.forwards, "reward_calls": self.reward_calls}
        return self._optimisation.state(counters)

    def restore(self, state: TrainerState) -> None:
        """Go on from ``state``; an average that it does not hold begins at its weights.

        Raises:
            ConfigError: if it is the state of other weights than these.
        """
        self._optimisation.restore(state)
        self.updates = state.counters["updates"]
        self._collector.forwards = state.counters["denoiser_forwards"]
        self._collector.reward_calls = state.counters["reward_calls"]

    # --- updating -----------------------------------------------------------------------------------------------

    def _update(
        self, index: int, batch: Batch, advantages: Advantages, *, on_policy: bool, report: Report
    ) -> dict[str, float]:
        rows = self._rows(advantages)
        total = round(self._runtime.total([rows.numel()])[0])
        meter = Meter(self._runtime)
        meter.rewards(batch.rewards, advantages)
        if total:
            weights = self._loss.step_weights(batch)
            chunks = _even_chunks(rows, self._config.training.micro_batch)
            for done, chunk in enumerate(chunks):
                self._backward(batch, advantages.advantage, chunk, weights=weights, total=total, meter=meter)
                report("training", done + 1, len(chunks))
            meter.gradient(self._optimisation.step(rollout=index, update=self.updates))
        row = meter.row()
        if on_policy and total:
            self._check_first_ratio(row["ratio_max_deviation"])
        row |= {"rollout": index, "update": self.updates, "rows": total}
        row |= {"denoiser_forwards": self.forwards, "reward_calls": self.reward_calls}
        self.updates += 1
        return row

    def _rows(self, advantages: Advantages) -> Tensor:
        """The edges an update learns from, shuffled by step and prompt alike."""
        if self._config.objective.filter_zero_variance:
            rows = informative_rows(advantages.advantage)
        else:
            rows = torch.arange(advantages.advantage.numel())
        order = torch.randperm(rows.numel(), generator=generator("rows", self._config.seed, self.updates))
        return rows[order]

    def _backward(
        self, batch: Batch, advantage: Tensor, rows: Tensor, *, weights: Tensor, total: int, meter: Meter
    ) -> None:
        part = self._loss.chunk(batch, advantage, rows, weights=weights, total=total)
        if not bool(part.loss.isfinite()):
            self._stop_non_finite("loss", batch, rows)
        self._optimisation.backward(part.loss)
        meter.chunk(part.surrogate, part.divergence, part.loss)

    # --- guards -------------------------------------------------------------------------------------------------

    def _check_first_ratio(self, deviation: float) -> None:
        """The first update is on-policy, so every ratio must be 1: exactly in float32."""
        exact = self._config.training.mixed_precision == "no" and self._config.sampling.storage_dtype == "float32"
        allowed = _ROUNDING if exact else self._config.objective.clip_range / 10
        if deviation > allowed:
            raise RuntimeError(
                f"the importance ratio of the first update deviates from 1 by {deviation:.3g}, above {allowed:.3g}: "
                "sampling and training do not evaluate the same policy. Give sampling and training the same "
                "micro_batch, and check that the network holds no dropout"
            )

    def _stop_non_finite(self, what: str, batch: Batch, rows: Tensor) -> NoReturn:
        walks = batch.scored.trajectories
        steps = sorted(set(walks.step[rows].tolist()))
        roots = walks.root[rows].tolist()
        names = sorted({batch.prompts[int(batch.prompt_index[root])] for root in roots})
        raise FloatingPointError(
            f"the {what} is not finite at update {self.updates}, steps {steps} "
            f"(sigma {[round(float(self._grid.sigma[s]), 4) for s in steps]}), prompts {names[:3]}; "
            "lower training.learning_rate, or train in float32 (training.mixed_precision=no)"
        )


def _even_chunks(rows: Tensor, micro_batch: int) -> tuple[Tensor, ...]:
    """As few chunks as fit, of nearly equal size: a remainder of one or two rows would run through other kernels."""
    return rows.tensor_split(max(1, -(-rows.numel() // micro_batch))) if rows.numel() else ()
