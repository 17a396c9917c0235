"""From gradients to new weights: their sum over processes, the optimiser's step, and the moving average."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NoReturn, final

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

_MAX_OVERFLOWS = 20  # float16 steps skipped in a row; halving the loss scale that often leaves it below 1


@final
class Optimisation:
    """The trainable weights of a pipeline, their optimiser and their average."""

    def __init__(self, pipeline: TrainablePipeline, *, config: TrainingConfig, runtime: Runtime) -> None:
        self._config = config
        self._runtime = runtime
        self._parameters: list[nn.Parameter] = pipeline.tuning.trainable_parameters()
        self._names = parameter_names(pipeline.network, self._parameters)
        self._optimizer = runtime.prepare_optimizer(
            torch.optim.AdamW(
                self._parameters,
                lr=config.learning_rate,
                betas=config.betas,
                weight_decay=config.weight_decay,
                eps=config.eps,
            )
        )
        ema = config.ema
        self.average = (
            MovingAverage(self._parameters, max_decay=ema.max_decay, every=ema.every) if ema.enabled else None
        )
        self._moved = False  # whether an update has been seen to change the weights
        self._overflows = 0  # steps skipped in a row

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a part of the loss."""
        self._runtime.backward(loss)

    def step(self, *, rollout: int, update: int) -> float:
        """Sum the gradients over processes and take one step; returns their norm before clipping.

        Raises:
            FloatingPointError: if the norm is not finite, in float16 several times in a row.
            RuntimeError: if the first step moves no weight.
        """
        before = None if self._moved else _checksum(self._parameters)
        self._runtime.sum_gradients(self._parameters)
        norm = self._runtime.clip_gradients(self._parameters, self._config.max_grad_norm)
        if not math.isfinite(norm) and self._config.mixed_precision != "fp16":
            _stop_gradient(f"is {norm}", rollout, update)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        if self._optimizer.step_was_skipped:  # float16: the loss scale was too large and is lowered
            self._overflows += 1
            if self._overflows >= _MAX_OVERFLOWS:
                _stop_gradient(f"overflowed {_MAX_OVERFLOWS} times in a row", rollout, update)
            return norm
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
        return norm

    def state(self, counters: Mapping[str, int]) -> TrainerState:
        """Everything a later step depends on, beside the counters of the trainer."""
        average = self.average
        return TrainerState(
            weights=dict(zip(self._names, self._parameters, strict=True)),
            optimizer=optimizer_tensors(self._optimizer, self._names),
            average={} if average is None else dict(zip(self._names, average.values, strict=True)),
            counters={
                **counters,
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
        self._overflows = state.counters["overflows"]


def _stop_gradient(what: str, rollout: int, update: int) -> NoReturn:
    raise FloatingPointError(
        f"the gradient norm {what} at rollout {rollout}, update {update}; "
        "lower training.learning_rate, or train in float32 (training.mixed_precision=no)"
    )


def _checksum(parameters: Sequence[nn.Parameter]) -> float:
    return float(sum(parameter.detach().double().abs().sum() for parameter in parameters))
