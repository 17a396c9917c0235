"""Policy-gradient training on recorded rollout steps: Flow-GRPO and every other plan of the engine.

One rollout phase samples, scores and compares; then come the updates it feeds. The first update is on-policy, so its
importance ratios are exactly 1; the later ones are what the clipped surrogate is for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn, final

import torch
from torch import Tensor, nn

from difalign.core.config import RunConfig
from difalign.core.gaussian import LOG_PROBS
from difalign.core.prompts import Prompt
from difalign.core.protocols import Condition, RewardModel, TrainablePipeline
from difalign.core.rng import generator, row_seed
from difalign.core.types import NoiseGrid, Plan, Scored
from difalign.objective.advantages import Advantages, group_advantages, informative_rows, reward_std
from difalign.objective.kl import KL_TYPES, evaluate
from difalign.objective.surrogate import clipped_surrogate
from difalign.objective.weights import STEP_WEIGHTS, step_weights
from difalign.rollout.engine import rollout
from difalign.rollout.grouping import edge_rewards, group_ids
from difalign.rollout.replay import edge_log_prob
from difalign.train.ema import MovingAverage
from difalign.train.meters import Meter
from difalign.train.runtime import Runtime
from difalign.train.sampler import rollout_prompts, split_groups
from difalign.train.scoring import decode_and_score
from difalign.train.state import (
    TrainerState,
    optimizer_tensors,
    parameter_names,
    restore_optimizer,
    restore_parameters,
)

PlanSchedule = Callable[[int], tuple[Plan, ...]]  # rollout index -> the plans it runs
Report = Callable[[str, int, int], None]  # (phase, done, total)

_MAX_OVERFLOWS = 20  # float16 steps skipped in a row; halving the loss scale that often leaves it below 1
_ROUNDING = 1e-6  # float32 rounding of a ratio; anything above says that sampling and training differ


@dataclass(frozen=True, slots=True)
class Batch:
    """What one update is made from, on one process."""

    scored: Scored
    condition: Condition
    prompt_index: Tensor  # [R] the prompt of every root
    prompts: tuple[str, ...]  # rows of condition
    rewards: Mapping[str, Tensor]  # name -> [L]


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
        training = config.training
        self._pipeline = pipeline
        self._reward = reward
        self._prompts = prompts
        self._plans = plans
        self._log_prob = LOG_PROBS[config.objective.log_prob]
        self._config = config
        self._runtime = runtime
        self._grid: NoiseGrid = pipeline.grid(config.sampling.steps)
        self._parameters: list[nn.Parameter] = pipeline.tuning.trainable_parameters()
        self._names = parameter_names(pipeline.network, self._parameters)
        self._optimizer = runtime.prepare_optimizer(
            torch.optim.AdamW(
                self._parameters,
                lr=training.learning_rate,
                betas=training.betas,
                weight_decay=training.weight_decay,
                eps=training.eps,
            )
        )
        ema = training.ema
        self.average = (
            MovingAverage(self._parameters, max_decay=ema.max_decay, every=ema.every) if ema.enabled else None
        )
        self._moved = False  # whether an update has been seen to change the weights
        self._overflows = 0  # steps skipped in a row
        self.updates = 0
        self.forwards = 0  # of all processes, in sampling
        self.reward_calls = 0  # likewise

    def run(self, index: int, report: Report) -> list[dict[str, float]]:
        """One rollout and its updates; a row of metrics an update, the same on every process."""
        batches = self._sample(index, report)
        advantages = self._advantages(batches)
        rows: list[dict[str, float]] = []
        for epoch in range(self._config.training.inner_epochs):
            for batch, advantage in zip(batches, advantages, strict=True):
                first = not rows and epoch == 0
                rows.append(self._update(index, batch, advantage, on_policy=first, report=report))
        return rows

    # --- its state ----------------------------------------------------------------------------------------------

    def state(self) -> TrainerState:
        """All that later rollouts depend on; to be read before the next update, which changes the tensors."""
        average = self.average
        return TrainerState(
            weights=dict(zip(self._names, self._parameters, strict=True)),
            optimizer=optimizer_tensors(self._optimizer, self._names),
            average={} if average is None else dict(zip(self._names, average.values, strict=True)),
            counters={
                "updates": self.updates,
                "denoiser_forwards": self.forwards,
                "reward_calls": self.reward_calls,
                "average_steps": 0 if average is None else average.steps,
                "overflows": self._overflows,
            },
            loss_scaling=self._runtime.loss_scaling,
        )

    def restore(self, state: TrainerState) -> None:
        """Go on from ``state``; an average that it does not hold begins at its weights.

        Raises:
            ConfigError: if it is the state of other weights than these.
        """
        restore_parameters(self._parameters, self._names, state.weights)
        restore_optimizer(self._optimizer, self._names, state.optimizer)
        if self.average is not None:
            values = state.average or state.weights
            self.average.restore([values[name] for name in self._names], state.counters["average_steps"])
        self._runtime.loss_scaling = dict(state.loss_scaling)
        self.updates = state.counters["updates"]
        self.forwards = state.counters["denoiser_forwards"]
        self.reward_calls = state.counters["reward_calls"]
        self._overflows = state.counters["overflows"]

    # --- sampling -----------------------------------------------------------------------------------------------

    def _sample(self, index: int, report: Report) -> list[Batch]:
        config = self._config
        chosen = rollout_prompts(
            len(self._prompts),
            updates=config.training.updates_per_rollout,
            prompts_per_update=config.sampling.prompts_per_update,
            seed=config.seed,
            rollout=index,
        )
        plans = self._plans(index)
        batches = []
        for indices in chosen:
            mine = split_groups(indices, rank=self._runtime.rank, world=self._runtime.world)
            batches.append(self._sample_batch([self._prompts[i].text for i in mine], plans, index, report))
        forwards = sum(batch.scored.trajectories.forwards for batch in batches)
        leaves = sum(batch.scored.trajectories.final.shape[0] for batch in batches)
        totals = self._runtime.total([forwards, leaves])
        self.forwards += round(totals[0])
        self.reward_calls += round(totals[1])
        return batches

    def _sample_batch(self, texts: list[str], plans: tuple[Plan, ...], index: int, report: Report) -> Batch:
        sampling = self._config.sampling
        roots = self._config.roots_per_prompt
        condition = self._pipeline.encode(texts)
        prompt_index = torch.arange(len(texts)).repeat_interleave(roots)
        with self._runtime.autocast():
            walks = rollout(
                self._pipeline,
                plans,
                condition=condition,
                prompt_index=prompt_index,
                root_seeds=[row_seed(self._config.seed, text, s, index) for text in texts for s in range(roots)],
                grid=self._grid,
                micro_batch=sampling.micro_batch,
                storage_dtype=getattr(torch, sampling.storage_dtype),
                log_prob=self._log_prob,
                progress=lambda done, total: report("sampling", done, total),
            )
        leaf_texts = [texts[p] for p in prompt_index[walks.final_root.cpu()].tolist()]
        media = decode_and_score(
            self._pipeline,
            self._reward,
            walks.final,
            leaf_texts,
            micro_batch=sampling.micro_batch,
            progress=lambda done, total: report("scoring", done, total),
        )
        scored = Scored(
            trajectories=walks,
            rewards={"total": media.scores, **media.components},
            edge_reward=edge_rewards(media.scores, walks),
            group=group_ids(walks, prompt_index, by=self._config.objective.advantage.group_by),
        )
        return Batch(scored, condition, prompt_index, tuple(texts), scored.rewards)

    def _advantages(self, batches: Sequence[Batch]) -> list[Advantages]:
        """Compared within groups, which never leave a process; a global spread is over everything gathered."""
        options = self._config.objective.advantage
        spread = None
        if options.std == "global":
            local = torch.cat([batch.scored.edge_reward for batch in batches]).tolist()
            spread = reward_std(torch.tensor(self._runtime.gather(local)), ddof=options.ddof)
        return [
            group_advantages(
                batch.scored.edge_reward,
                batch.scored.group,
                std=options.std,
                ddof=options.ddof,
                eps=options.eps,
                global_std=spread,
                clip=options.clip,
            )
            for batch in batches
        ]

    # --- updating -----------------------------------------------------------------------------------------------

    def _update(
        self, index: int, batch: Batch, advantages: Advantages, *, on_policy: bool, report: Report
    ) -> dict[str, float]:
        rows = self._rows(advantages)
        total = round(self._runtime.total([rows.numel()])[0])
        meter = Meter(self._runtime)
        meter.rewards(batch.rewards, advantages)
        if total:
            weights = self._step_weights(batch)
            chunks = _even_chunks(rows, self._config.training.micro_batch)
            for done, chunk in enumerate(chunks):
                self._backward(batch, advantages.advantage, chunk, weights=weights, total=total, meter=meter)
                report("training", done + 1, len(chunks))
            self._step(index, meter)
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

    def _step_weights(self, batch: Batch) -> Tensor:
        """[T] by step, over the steps that this batch trains."""
        walks = batch.scored.trajectories
        steps, first = _first_of_each(walks.step)
        rule = STEP_WEIGHTS[self._config.objective.weight]
        return step_weights(rule, self._pipeline.process, self._grid, steps, noise_level=walks.noise_level[first])

    def _backward(
        self, batch: Batch, advantage: Tensor, rows: Tensor, *, weights: Tensor, total: int, meter: Meter
    ) -> None:
        objective, device = self._config.objective, self._pipeline.device
        walks = batch.scored.trajectories
        with self._runtime.autocast():
            new = edge_log_prob(
                self._pipeline,
                walks,
                rows,
                condition=batch.condition,
                prompt_index=batch.prompt_index,
                grid=self._grid,
                log_prob=self._log_prob,
            )
        surrogate = clipped_surrogate(
            new.log_prob,
            walks.log_prob[rows].to(device),
            advantage[rows].to(device),
            clip_range=objective.clip_range,
            weight=weights.to(device)[walks.step[rows].to(device)],
        )
        loss = surrogate.loss.sum() / total
        divergence = self._divergence(batch, rows, new.prediction)
        if divergence is not None and objective.kl.beta > 0:
            loss = loss + objective.kl.beta * divergence.sum() / total
        if not bool(loss.isfinite()):
            self._stop_non_finite("loss", batch, rows)
        self._runtime.backward(loss)
        meter.chunk(surrogate, divergence, loss)

    def _divergence(self, batch: Batch, rows: Tensor, prediction: Tensor) -> Tensor | None:
        """Distance from the policy before training, [B]; None if the run does not measure it."""
        kind = self._config.objective.kl.kind
        if kind == "none":
            return None
        walks = batch.scored.trajectories
        with torch.no_grad(), self._pipeline.tuning.reference(), self._runtime.autocast():
            old = edge_log_prob(
                self._pipeline,
                walks,
                rows,
                condition=batch.condition,
                prompt_index=batch.prompt_index,
                grid=self._grid,
            )
        device = self._pipeline.device
        x, step = walks.x[rows].to(device).float(), walks.step[rows].to(device)
        level = walks.noise_level[rows].to(device)
        policy, reference = (
            evaluate(self._pipeline.process, self._grid, x, p, step=step, noise_level=level)
            for p in (prediction, old.prediction)
        )
        return KL_TYPES[kind](policy, reference)

    def _step(self, index: int, meter: Meter) -> None:
        before = None if self._moved else _checksum(self._parameters)
        self._runtime.sum_gradients(self._parameters)
        norm = self._runtime.clip_gradients(self._parameters, self._config.training.max_grad_norm)
        if not math.isfinite(norm) and self._config.training.mixed_precision != "fp16":
            self._stop_gradient(f"is {norm}", index)
        meter.gradient(norm)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        if self._optimizer.step_was_skipped:  # float16: the loss scale was too large and is lowered
            self._overflows += 1
            if self._overflows >= _MAX_OVERFLOWS:
                self._stop_gradient(f"overflowed {_MAX_OVERFLOWS} times in a row", index)
            return
        self._overflows = 0
        if self.average is not None:
            self.average.update()
        if before is not None and norm > 0:
            self._moved = before != _checksum(self._parameters)
            if not self._moved:
                raise RuntimeError(
                    f"no weight moved at the first update although the gradient norm is {norm:.3g}; "
                    "raise training.learning_rate"
                )

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

    def _stop_gradient(self, what: str, index: int) -> NoReturn:
        raise FloatingPointError(
            f"the gradient norm {what} at rollout {index}, update {self.updates}; "
            "lower training.learning_rate, or train in float32 (training.mixed_precision=no)"
        )

    def _stop_non_finite(self, what: str, batch: Batch, rows: Tensor) -> None:
        walks = batch.scored.trajectories
        steps = sorted(set(walks.step[rows].tolist()))
        roots = walks.root[rows].tolist()
        names = sorted({batch.prompts[int(batch.prompt_index[root])] for root in roots})
        raise FloatingPointError(
            f"the {what} is not finite at update {self.updates}, steps {steps} "
            f"(sigma {[round(float(self._grid.sigma[s]), 4) for s in steps]}), prompts {names[:3]}; "
            "lower training.learning_rate, or train in float32 (training.mixed_precision=no)"
        )


def _first_of_each(step: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct steps in rising order, and the first edge of each."""
    steps, inverse = torch.unique(step, return_inverse=True)
    positions = torch.arange(step.numel(), device=step.device)
    first = torch.full_like(steps, step.numel()).scatter_reduce(0, inverse, positions, reduce="amin")
    return steps, first


def _even_chunks(rows: Tensor, micro_batch: int) -> tuple[Tensor, ...]:
    """As few chunks as fit, of nearly equal size: a remainder of one or two rows would run through other kernels."""
    return rows.tensor_split(max(1, -(-rows.numel() // micro_batch))) if rows.numel() else ()


def _checksum(parameters: Sequence[nn.Parameter]) -> float:
    return float(sum(parameter.detach().double().abs().sum() for parameter in parameters))
