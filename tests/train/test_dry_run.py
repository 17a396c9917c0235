"""The passes before training: they leave nothing behind, and halve what does not fit on all processes alike."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from difalign.build.plans import build_plans
from difalign.core.config import RunConfig
from difalign.core.errors import ConfigError
from difalign.core.protocols import Condition
from difalign.train.dry_run import fit_micro_batches
from difalign.train.runtime import Runtime
from tests.train.small_runs import TRAIN, Painter, painter, rows_of, run_toy, toy_run_config, weights_of, without_clocks
from tests.train.together import ThreadRuntime, run_together


@dataclass
class Small(Painter):
    """A device with room for so many rows: fewer with gradient than without."""

    room: int = 8
    room_without: int = 8

    def predict(self, x: Tensor, model_time: Tensor, condition: Condition) -> Tensor:
        if x.shape[0] > (self.room if torch.is_grad_enabled() else self.room_without):
            raise torch.OutOfMemoryError("not so many rows")
        return super().predict(x, model_time, condition)


def small(room: int, room_without: int = 99) -> Small:
    whole = painter()
    return Small(whole.network, process=whole.process, latent=whole.latent, room=room, room_without=room_without)


def fit(config: RunConfig, pipeline: Painter, runtime: Any = None) -> tuple[RunConfig, list[str]]:
    said: list[str] = []
    plans = build_plans(config, rollout=0)
    fitting = fit_micro_batches(config, pipeline, TRAIN, plans, runtime or Runtime(), say=said.append)
    return fitting, said


def sizes(config: RunConfig) -> tuple[int, int]:
    return config.sampling.micro_batch, config.training.micro_batch


def test_what_fits_is_left_as_it_is(tmp_path: Path) -> None:
    config = toy_run_config(tmp_path)
    pipeline = painter()
    fitting, said = fit(config, pipeline)
    assert fitting == config
    assert not said
    assert pipeline.batches == [8, 8]  # one pass with gradient, one without


def test_halved_until_it_fits_and_said_aloud(tmp_path: Path) -> None:
    config = toy_run_config(tmp_path, training={"micro_batch": 6})
    fitting, said = fit(config, small(room=2))
    assert sizes(fitting) == (8, 1)  # 6, 3, 1
    assert len(said) == 1
    assert said[0].startswith("WARNING: training.micro_batch = 6 does not fit the memory; going on with 1")


def test_equal_micro_batches_stay_equal(tmp_path: Path) -> None:
    fitting, said = fit(toy_run_config(tmp_path), small(room=3))
    assert sizes(fitting) == (2, 2)
    assert len(said) == 2


def test_sampling_may_be_what_does_not_fit(tmp_path: Path) -> None:
    config = toy_run_config(tmp_path, training={"micro_batch": 4})
    assert sizes(fit(config, small(room=4, room_without=5))[0]) == (4, 4)


def test_no_more_rows_than_there_will_be(tmp_path: Path) -> None:
    """Two prompts of four samples: eight rows live at a time, and 24 recorded edges."""
    config = toy_run_config(tmp_path, sampling={"micro_batch": 500}, training={"micro_batch": 1000})
    pipeline = painter()
    assert fit(config, pipeline)[0] == config
    assert pipeline.batches == [24, 8]
    assert sizes(fit(config, small(room=23))[0]) == (500, 12)


def test_switched_off(tmp_path: Path) -> None:
    config = toy_run_config(tmp_path, training={"auto_micro_batch": False})
    pipeline = painter()
    assert fit(config, pipeline)[0] is config
    assert not pipeline.batches


def test_not_a_single_row(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"training.micro_batch = 1: a single row does not fit .*gradient_checkpoint"):
        fit(toy_run_config(tmp_path), small(room=0))


class Forgetful(nn.Module):
    """Draws from the global generator and counts its calls in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = painter().network
        self.calls: Tensor
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor, t: Tensor, offset: Tensor) -> Tensor:
        self.calls += 1
        return self.inner(x, t, offset) + 0.0 * torch.rand(())


def test_weights_buffers_gradients_and_generators_are_untouched(tmp_path: Path) -> None:
    pipeline = replace(painter(), network=Forgetful())
    before = {name: value.clone() for name, value in pipeline.network.state_dict().items()}
    state = torch.random.get_rng_state()
    fit(toy_run_config(tmp_path), pipeline)
    assert len(pipeline.batches) == 2
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in pipeline.network.state_dict().items())
    assert all(parameter.grad is None for parameter in pipeline.network.parameters())


def test_run_is_the_same_to_the_last_bit_with_the_passes_and_without(tmp_path: Path) -> None:
    for name, tried in (("with", True), ("without", False)):
        run_toy(toy_run_config(tmp_path / name, training={"auto_micro_batch": tried}))
    rows = [[without_clocks(row) for row in rows_of(tmp_path / name)] for name in ("with", "without")]
    assert rows[0] == rows[1]
    weights = [weights_of(tmp_path / name) for name in ("with", "without")]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_run_with_halved_micro_batches_learns_the_same(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run_toy(toy_run_config(tmp_path / "large"))
    run_toy(toy_run_config(tmp_path / "small"), pipeline=small(room=3))
    assert "WARNING: training.micro_batch = 8 does not fit" in " ".join(capfd.readouterr().err.split())
    expected = weights_of(tmp_path / "large")
    for name, value in weights_of(tmp_path / "small").items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-7)
    norms = [[row["grad_norm"] for row in rows_of(tmp_path / name)] for name in ("large", "small")]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


@dataclass(frozen=True)
class Process(ThreadRuntime):
    """A process among threads, with what the passes ask of it."""

    shards: bool = False

    def autocast(self) -> Any:
        return nullcontext()

    def whole_network(self) -> Any:
        return nullcontext()

    def free_memory(self) -> None:
        return None


def test_all_processes_take_the_smallest(tmp_path: Path) -> None:
    config = toy_run_config(tmp_path)

    def fitted(mine: ThreadRuntime) -> tuple[int, int]:
        return sizes(fit(config, small(8 - 5 * mine.rank), Process(mine.rank, mine.meeting))[0])

    found = run_together(2, fitted)
    assert found == [(2, 2), (2, 2)]


def test_weights_in_parts_are_tried_but_not_halved(tmp_path: Path) -> None:
    runtime = run_together(1, lambda mine: Process(mine.rank, mine.meeting, shards=True))[0]
    with pytest.raises(torch.OutOfMemoryError):
        fit(toy_run_config(tmp_path), small(room=3), runtime)
