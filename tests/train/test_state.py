"""The state of a trainer: what is taken from one goes on in another."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from difalign.core.errors import ConfigError
from difalign.train.runtime import Runtime
from difalign.train.state import read_trainer_state
from tests.train.cut_short import EMA
from tests.train.toy_run import quiet, toy_config, toy_trainer, weights


@pytest.mark.parametrize(
    "ema", [{"enabled": False}, {"enabled": True, "every": 3, "max_decay": 0.9}], ids=["own", "ema"]
)
def test_restored_trainer_goes_on_as_the_one_it_was_taken_from(tmp_path: Path, ema: dict[str, Any]) -> None:
    config = toy_config(training={"ema": ema, "updates_per_rollout": 2})
    straight, pipeline = toy_trainer(config)
    for index in range(2):
        straight.run(index, quiet)
    for name, write in straight.state().files().items():
        write(tmp_path / name)
    expected = [straight.run(index, quiet) for index in (2, 3)]

    again, other = toy_trainer(config)
    again.restore(read_trainer_state(tmp_path))
    assert [again.run(index, quiet) for index in (2, 3)] == expected
    assert torch.equal(weights(other), weights(pipeline))
    if straight.average is not None:
        assert again.average is not None
        assert again.average.steps == straight.average.steps == 8
        assert all(map(torch.equal, again.average.values, straight.average.values))


def test_every_part_of_the_state_matters(tmp_path: Path) -> None:
    """Whatever is left out, the run goes another way: so the test above sees each part."""
    config = toy_config(training={"ema": EMA, "updates_per_rollout": 2})
    trainer, _ = toy_trainer(config)
    trainer.run(0, quiet)
    for name, write in trainer.state().files().items():
        write(tmp_path / name)
    state = read_trainer_state(tmp_path)

    def end(changed: Any) -> tuple[Tensor, Tensor]:
        again, pipeline = toy_trainer(config)
        again.restore(changed)
        again.run(1, quiet)
        assert again.average is not None
        return weights(pipeline), torch.cat([value.reshape(-1) for value in again.average.values])

    def differs(changed: Any) -> bool:
        return not all(map(torch.equal, end(changed), expected))

    expected = end(state)
    fresh = toy_trainer(config)[0].state()
    steps = {
        name: torch.ones_like(value) if name.endswith("step") else value for name, value in state.optimizer.items()
    }
    assert not differs(state)
    assert differs(replace(state, weights=fresh.weights))
    assert differs(replace(state, optimizer={}))
    assert differs(replace(state, optimizer=steps))
    assert differs(replace(state, average=fresh.average))
    assert differs(replace(state, counters={**state.counters, "updates": 0}))
    assert differs(replace(state, counters={**state.counters, "average_steps": 0}))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensors: {name: tensors[name] for name in list(tensors)[1:]}, "it has no"),
        (lambda tensors: {**tensors, "more": torch.ones(1)}, "nothing is called 'more'"),
        (
            lambda tensors: {name: value[..., None] for name, value in tensors.items()},
            r"is \[.*\] there and \[.*\] here",
        ),
    ],
    ids=["missing", "left over", "shape"],
)
def test_state_of_another_network_is_refused(
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]], said: str
) -> None:
    trainer, pipeline = toy_trainer(toy_config())
    before = weights(pipeline).clone()
    state = trainer.state()
    with pytest.raises(ConfigError, match=said):
        trainer.restore(replace(state, weights=change(dict(state.weights))))
    assert torch.equal(weights(pipeline), before)


def test_loss_scaling_is_part_of_the_state() -> None:
    runtime = Runtime()
    assert runtime.loss_scaling == {}
    runtime._accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**7)
    state = runtime.loss_scaling
    runtime._accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    runtime.loss_scaling = state
    assert runtime._accelerator.scaler.get_scale() == 2.0**7
    assert json.loads(json.dumps(state)) == state
