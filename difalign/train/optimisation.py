"""From gradients to new weights: their sum over processes, the optimiser's step, and the moving average."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from difalign.core.config import TrainingConfig
from difalign.core.protocols import TrainablePipeline
from difalign.train.ema import MovingAverage
from difalign.train.runtime import Runtime
from difalign.train.state import (
    TrainerState,
    optimizer_tensors,
    parameter_names,
    restore_optimizer,
    restore_parameters,
)


@dataclass(frozen=True, slots=True)
class Step:
    """What became of one step, the same on every process."""

    norm: float  # of the gradient over all processes, before clipping
    taken: bool  # False: it was not finite, and weights, moments and average are as they were


@final
class Optimisation:
    """The trainable weights of a pipeline, their optimiser and their average."""

    def __init__(self, pipeline: TrainablePipeline, *, config: TrainingConfig, runtime: Runtime) -> None:
        self._config = config
        self._runtime = runtime
        self.parameters: list[nn.Parameter] = pipeline.tuning.trainable_parameters()
        self._names = parameter_names(pipeline.network, self.parameters)
        self._optimizer = runtime.prepare_optimizer(
            torch.optim.AdamW(
                self.parameters,
                lr=config.learning_rate,
                betas=config.betas,
                weight_decay=config.weight_decay,
                eps=config.eps,
            )
        )
        ema = config.ema
        self.average = MovingAverage(self.parameters, max_decay=ema.max_decay, every=ema.every) if ema.enabled else None

    @property
    def learning_rate(self) -> float:
        """Of the steps to come."""
        return self._optimizer.param_groups[0]["lr"]

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = value

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a part of the loss."""
        self._runtime.backward(loss)

    def step(self) -> Step:
        """Sum the gradients over processes and take one step, unless their norm is no finite number.

        A gradient that is not finite on one process is not finite in the sum, so that all skip the step together. In
        float16 the optimiser itself skips it, and lowers the scale of the loss.
        """
        self._runtime.sum_gradients(self.parameters)
        norm = self._runtime.clip_gradients(self.parameters, self._config.max_grad_norm)
        scaled = self._config.mixed_precision == "fp16"
        if scaled or math.isfinite(norm):
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        taken = not self._optimizer.step_was_skipped if scaled else math.isfinite(norm)
        if taken and self.average is not None:
            self.average.update()
        return Step(norm, taken)

    def state(self, counters: Mapping[str, int]) -> TrainerState:
        """Everything a later step depends on, beside the counters of the trainer; all processes must ask."""
        average = self.average
        averages = {} if average is None else dict(zip(self._names, average.values, strict=True))
        return TrainerState(
            weights=self._runtime.collect(dict(zip(self._names, self.parameters, strict=True))),
            optimizer=self._runtime.collect(optimizer_tensors(self._optimizer, self._names)),
            average=self._runtime.collect(averages),
            counters={**counters, "average_steps": 0 if average is None else average.steps},
            loss_scaling=self._runtime.loss_scaling,
        )

    def restore(self, state: TrainerState) -> None:
        """Go on from ``state``; an average that it does not hold begins at its weights.

        Raises:
            ConfigError: if it is the state of other weights than these.
        """
        restore_parameters(self.parameters, self._names, state.weights)
        restore_optimizer(self._optimizer, self._names, state.optimizer)
        if self.average is not None:
            values = state.average or state.weights
            self.average.restore([values[name] for name in self._names], state.counters["average_steps"])
        self._runtime.loss_scaling = dict(state.loss_scaling)
