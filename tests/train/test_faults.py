"""Losses and gradients that are not finite: the update is skipped by all, named, and counted; too many stop the run."""

from __future__ import annotations

import math
from collections.abc import Container
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from difalign.train.edge_loss import ChunkLoss, EdgeLoss
from difalign.train.policy_gradient import PolicyGradient
from tests.train.cut_short import EMA
from tests.train.faulty import GradientBreaks, LossBreaks
from tests.train.toy_run import TrainableToy, quiet, toy_config, toy_trainer, weights

# 4 prompts x 12 samples x 5 steps in micro-batches of 64: four forwards with gradient an update
FORWARDS = 4


def trainer_on(
    kind: type[LossBreaks | GradientBreaks], at: Container[int], **sections: Any
) -> tuple[PolicyGradient, TrainableToy]:
    training = {"ema": EMA, **sections.pop("training", {})}
    return toy_trainer(toy_config(training=training, **sections), network=kind(at))


def snapshot(trainer: PolicyGradient, pipeline: TrainableToy) -> list[Tensor]:
    """Weights, moments and average."""
    state = trainer.state()
    held = [*state.weights.values(), *state.optimizer.values(), *state.average.values()]
    return [weights(pipeline), *(tensor.detach().clone() for tensor in held)]


@pytest.mark.parametrize("kind", [LossBreaks, GradientBreaks])
@pytest.mark.parametrize("chunk", [0, 2, 3])
def test_an_update_that_is_not_finite_leaves_everything_as_it_was(kind, chunk: int) -> None:
    trainer, pipeline = trainer_on(kind, {FORWARDS + chunk})
    trainer.run(0, quiet)
    before = snapshot(trainer, pipeline)
    (row,) = trainer.run(1, quiet)
    after = snapshot(trainer, pipeline)
    assert len(before) == len(after) > 6
    assert all(map(torch.equal, before, after))
    assert trainer.average is not None
    assert trainer.average.steps == 1
    assert "grad_norm" not in row
    assert all(map(math.isfinite, row.values()))
    (alarm,) = trainer.alarms.given
    assert (alarm.name, alarm.rollout, alarm.update, alarm.value) == ("skipped_update", 1, 1, 1.0)
    what = "loss" if kind is LossBreaks else "gradient"
    assert f"the {what} is not finite on process 0 at steps [" in alarm.seen
    assert "(sigma 0." in alarm.seen or "(sigma 1" in alarm.seen
    assert "prompts '0.0" in alarm.seen
    assert "training.learning_rate" in alarm.remedy
    trainer.run(2, quiet)  # and training goes on
    assert len(trainer.alarms.given) == 1
    assert not torch.equal(weights(pipeline), after[0])


def test_the_micro_batch_at_fault_is_the_one_that_is_named() -> None:
    """With one row a micro-batch there is one step and one prompt to name, and the levels are those of the step."""
    trainer, pipeline = trainer_on(
        LossBreaks,
        {7},
        sampling={"prompts_per_update": 4, "samples_per_prompt": 3, "micro_batch": 1},
        training={"micro_batch": 1},
    )
    trainer.run(0, quiet)
    (alarm,) = trainer.alarms.given
    step = int(alarm.seen.split("steps [")[1].split("]")[0])
    assert f"(sigma {float(pipeline.grid(6).sigma[step]):.4g})" in alarm.seen
    assert alarm.seen.count("'") == 2


def test_a_loss_that_is_not_finite_is_enough_though_its_gradient_is(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, pipeline = trainer_on(LossBreaks, ())
    trainer.run(0, quiet)
    before = snapshot(trainer, pipeline)
    chunk = EdgeLoss.chunk

    def overflowing(self: EdgeLoss, *arguments: Any, **options: Any) -> ChunkLoss:
        part = chunk(self, *arguments, **options)
        return replace(part, loss=part.loss + float("inf"))

    monkeypatch.setattr(EdgeLoss, "chunk", overflowing)
    trainer.run(1, quiet)
    assert all(map(torch.equal, before, snapshot(trainer, pipeline)))
    assert "the loss is not finite" in trainer.alarms.given[0].seen


def test_skips_in_a_row_stop_and_a_good_update_between_them_does_not() -> None:
    always, _ = trainer_on(LossBreaks, range(10**6))
    for index in range(2):
        always.run(index, quiet)
    with pytest.raises(FloatingPointError, match=r"update 2: the loss is not finite .*sigma.*prompts.*3 in a row"):
        always.run(2, quiet)
    assert [alarm.value for alarm in always.alarms.given] == [1.0, 2.0, 3.0]

    now_and_then, _ = trainer_on(LossBreaks, range(0, 10**6, 2 * FORWARDS))
    for index in range(8):
        now_and_then.run(index, quiet)
    assert [alarm.update for alarm in now_and_then.alarms.given] == [0, 2, 4, 6]


def test_the_limit_is_configured_and_skips_are_part_of_the_state() -> None:
    once, _ = trainer_on(GradientBreaks, range(10**6), guards={"max_skipped": 1})
    with pytest.raises(FloatingPointError, match=r"1 in a row, guards\.max_skipped = 1"):
        once.run(0, quiet)

    first, _ = trainer_on(LossBreaks, range(10**6), guards={"max_skipped": 2})
    first.run(0, quiet)
    second, _ = trainer_on(LossBreaks, range(10**6), guards={"max_skipped": 2})
    second.restore(first.state())
    with pytest.raises(FloatingPointError, match="2 in a row"):
        second.run(1, quiet)


def test_without_guards_it_is_skipped_as_well_but_less_is_said() -> None:
    trainer, pipeline = trainer_on(GradientBreaks, {0}, guards={"enabled": False})
    before = weights(pipeline)
    trainer.run(0, quiet)
    assert torch.equal(weights(pipeline), before)
    (alarm,) = trainer.alarms.given
    assert "the gradient norm is" in alarm.seen


def test_a_healthy_run_gives_no_alarm() -> None:
    trainer, _ = trainer_on(LossBreaks, ())
    for index in range(6):
        trainer.run(index, quiet)
    assert trainer.alarms.given == ()
