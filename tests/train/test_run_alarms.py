"""The guards of a whole run, on a toy: what is injected is seen, counted, shown and resumed; a healthy run is quiet."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from difalign.core.types import Metadata, RewardOutput
from difalign.report.run_folder import read_run
from difalign.report.status import run_status
from difalign.train.checkpoint import list_checkpoints
from difalign.train.ema import MovingAverage
from tests.toys import ElementwisePolicy
from tests.train.cut_short import EMA, Stopped
from tests.train.faulty import GradientBreaks, LossBreaks
from tests.train.small_runs import (
    WEIGHTS,
    Brightness,
    Painter,
    painter,
    rows_of,
    run_toy,
    toy_run_config,
    weights_of,
    without_clocks,
)

PEAK = 0.628  # mean pixel; held-out samples begin at 0.616
FORWARDS = 3  # with gradient, an update: 2 x 4 samples x 3 steps in micro-batches of 8


def update(number: int) -> int:
    """The first forward with gradient of an update; one came before all, in the dry pass."""
    return 1 + number * FORWARDS


def painter_with(network: ElementwisePolicy) -> Painter:
    return Painter(network, process=painter().process, latent=(3, 4, 4))


def names(folder: Path) -> list[str]:
    return [alarm.name for alarm in read_run(folder).alarms]


@dataclass(frozen=True)
class Hacked(Brightness):
    """Rewards one thing for training prompts and its opposite for held-out ones, which begin at 0.5."""

    def score(
        self, media: Tensor, prompts: Sequence[str], *, metadata: Metadata | None = None, sigma: float | None = None
    ) -> RewardOutput:
        sign = torch.tensor([-1.0 if float(prompt) >= 0.5 else 1.0 for prompt in prompts])
        return RewardOutput(sign * media.flatten(1).mean(dim=1).float())


# --- quiet, and not --------------------------------------------------------------------------------------------------


def test_a_healthy_run_is_quiet(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = toy_run_config(tmp_path, training={"rollouts": 8, "ema": EMA}, evaluation={"every": 2})
    summary = run_toy(config)
    assert summary["alarms"] == {}
    assert not (tmp_path / "alarms.jsonl").exists()
    assert "alarm" not in capfd.readouterr().err
    assert "Alarms" not in (tmp_path / "report.html").read_text()
    assert all(row["diversity"] > 0 for row in rows_of(tmp_path))


def test_an_alarm_is_one_line_shown_written_counted_and_reported(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    summary = run_toy(toy_run_config(tmp_path), pipeline=painter_with(LossBreaks({update(1)})))
    err = capfd.readouterr().err
    (alarm,) = read_run(tmp_path).alarms
    assert summary["alarms"] == json.loads((tmp_path / "summary.json").read_text())["alarms"] == {"skipped_update": 1}
    assert err.count("alarm:") == 1
    assert f"alarm: {alarm.line}\n" in err
    assert run_status(tmp_path, now=0.0).alarms == ("skipped_update: 1", alarm.line)
    page = (tmp_path / "report.html").read_text()
    assert 'id="alarms"' in page
    assert "the loss is not finite on process 0" in page
    assert "grad_norm" not in rows_of(tmp_path)[1]


@pytest.mark.parametrize("kind", [LossBreaks, GradientBreaks])
def test_a_run_that_is_stopped_says_so_in_its_folder(tmp_path: Path, kind) -> None:
    pipeline = painter_with(kind(range(update(1), 10**6)))
    config = toy_run_config(tmp_path, training={"rollouts": 5}, guards={"max_skipped": 2})
    with pytest.raises(FloatingPointError, match=r"^skipped_update at rollout 2, update 2: .*sigma.*prompts.*2 in a"):
        run_toy(config, pipeline=pipeline)
    assert names(tmp_path) == ["skipped_update"] * 2
    run = read_run(tmp_path)
    assert run.summary is None
    assert len(run.metrics) == 2
    assert not (tmp_path / WEIGHTS).exists()
    assert all(bool(value.isfinite()) for value in pipeline.weights().values())


def test_training_prompts_learnt_at_the_cost_of_the_others(tmp_path: Path) -> None:
    config = toy_run_config(
        tmp_path, training={"rollouts": 8, "learning_rate": 0.1}, evaluation={"every": 4, "seeds_per_prompt": 4}
    )
    summary = run_toy(config, reward=Hacked())
    assert summary["gain_ci95"][1] < 0
    assert summary["alarms"]["heldout_drift"] == 1
    (alarm,) = (each for each in read_run(tmp_path).alarms if each.name == "heldout_drift")
    assert "while the training reward rises" in alarm.seen
    assert summary["best"] == {"rollout": 0, "score": summary["base"], "folder": None}
    assert not (tmp_path / "best").exists()


@dataclass
class Collapsing(Painter):
    """After a while its pictures are all alike."""

    decoded: int = 0

    def decode(self, latents: Tensor) -> Tensor:
        self.decoded += 1
        pixels = super().decode(latents)
        return 0.1 * pixels + 0.45 if self.decoded > 8 else pixels


def test_samples_that_become_alike(tmp_path: Path) -> None:
    config = toy_run_config(tmp_path, training={"rollouts": 14}, guards={"heldout": False})
    pipeline = Collapsing(ElementwisePolicy(), process=painter().process, latent=(3, 4, 4))
    summary = run_toy(config, pipeline=pipeline)
    assert summary["alarms"] == {"diversity_drift": 1}
    rows = rows_of(tmp_path)
    assert rows[-1]["diversity"] < 0.5 * rows[0]["diversity"]


# --- the weights that sample ------------------------------------------------------------------------------------------


def test_an_average_that_is_not_given_back_exactly_stops_the_run(tmp_path: Path, monkeypatch) -> None:
    applied = MovingAverage.applied

    @contextmanager
    def sloppy(self: MovingAverage) -> Iterator[None]:
        with applied(self):
            yield
        with torch.no_grad():
            self._parameters[0].mul_(1 + 1e-6)

    monkeypatch.setattr(MovingAverage, "applied", sloppy)
    config = toy_run_config(tmp_path, training={"ema": EMA}, evaluation={"every": 1})
    with pytest.raises(RuntimeError, match="before going on after evaluation training: the weights are not those"):
        run_toy(config)


@dataclass(frozen=True)
class Meddling(Brightness):
    """A reward that writes to the network it is to score."""

    network: torch.nn.Module | None = None

    def score(
        self, media: Tensor, prompts: Sequence[str], *, metadata: Metadata | None = None, sigma: float | None = None
    ) -> RewardOutput:
        assert self.network is not None
        with torch.no_grad():
            next(self.network.parameters()).add_(1e-3)
        return super().score(media, prompts, metadata=metadata, sigma=sigma)


def test_weights_that_change_while_sampling_stop_the_run(tmp_path: Path) -> None:
    pipeline = painter()
    with pytest.raises(RuntimeError, match="before going on after evaluation base"):
        run_toy(toy_run_config(tmp_path), pipeline=pipeline, reward=Meddling(network=pipeline.network))


class Detached(ElementwisePolicy):
    """Predicts from copies of its weights, so that no gradient reaches them."""

    def forward(self, x: Tensor, t: Tensor, offset: Tensor) -> Tensor:
        return super().forward(x, t, offset).detach() + 0.0 * self.gain


def test_a_gradient_that_never_arrives_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no gradient reaches the trained weights"):
        run_toy(toy_run_config(tmp_path), pipeline=painter_with(Detached()))
    assert names(tmp_path) == ["weights_still"]


# --- what is saved ------------------------------------------------------------------------------------------------


@dataclass
class Rereading(Painter):
    """A toy that reads its file back, scaled by what a careless export would lose."""

    lost: float = 1.0

    def reread(self, folder: str | Path) -> Painter:
        reader = painter()
        reader.network.load_state_dict({k: self.lost * v for k, v in load_file(Path(folder) / WEIGHTS).items()})
        return reader


@pytest.mark.parametrize(("lost", "guards", "found"), [(1.0, {}, 0), (0.5, {}, 1), (0.5, {"reload": False}, 0)])
def test_exports_are_read_back_and_compared(tmp_path: Path, lost: float, guards: dict[str, Any], found: int) -> None:
    pipeline = Rereading(ElementwisePolicy(), process=painter().process, latent=(3, 4, 4), lost=lost)
    config = toy_run_config(tmp_path, training={"ema": EMA}, guards={**guards, "keep_best": False})
    summary = run_toy(config, pipeline=pipeline)
    assert summary["alarms"].get("export_differs", 0) == found
    if found:
        (alarm,) = read_run(tmp_path).alarms
        assert alarm.value is not None
        assert alarm.value > alarm.limit == 1e-4
        assert str(tmp_path) in alarm.seen


class Unreadable(Rereading):
    def reread(self, folder: str | Path) -> Painter:
        raise ValueError("no such key")


def test_an_export_that_cannot_be_read_is_an_alarm(tmp_path: Path) -> None:
    pipeline = Unreadable(ElementwisePolicy(), process=painter().process, latent=(3, 4, 4))
    summary = run_toy(toy_run_config(tmp_path, guards={"keep_best": False}), pipeline=pipeline)
    assert summary["alarms"] == {"export_differs": 1}
    assert "diffusers cannot read" in read_run(tmp_path).alarms[0].seen


def test_the_best_weights_are_kept_and_named(tmp_path: Path) -> None:
    """Too high a rate: the run overshoots, and what it ends with is not its best."""
    config = toy_run_config(
        tmp_path, training={"rollouts": 6, "learning_rate": 0.05, "ema": EMA}, evaluation={"every": 1}
    )
    summary = run_toy(config, reward=Peaked())
    scores = {stored.evaluation.rollout: _mean(stored.evaluation.records) for stored in read_run(tmp_path).evaluations}
    best = max(scores, key=lambda rollout: (scores[rollout], -rollout))
    assert 0 < best < 6
    assert summary["best"] == {"rollout": best, "score": pytest.approx(scores[best]), "folder": "best"}
    shorter = toy_run_config(
        tmp_path.with_name("shorter"),
        training={"rollouts": best, "learning_rate": 0.05, "ema": EMA},
        evaluation={"every": 1},
    )
    run_toy(shorter, reward=Peaked())
    assert load_file(tmp_path / "best" / WEIGHTS) == weights_of(tmp_path.with_name("shorter")) != weights_of(tmp_path)


@dataclass(frozen=True)
class Peaked(Brightness):
    """Likes bright pictures in training; of held-out prompts, which begin at 0.5, only a little brighter ones."""

    def score(
        self, media: Tensor, prompts: Sequence[str], *, metadata: Metadata | None = None, sigma: float | None = None
    ) -> RewardOutput:
        mean = media.flatten(1).mean(dim=1).float()
        heldout = torch.tensor([float(prompt) >= 0.5 for prompt in prompts])
        return RewardOutput(torch.where(heldout, -10 * (mean - PEAK).square(), mean))


def _mean(records: Any) -> float:
    return sum(record.scores["total"] for record in records) / len(records)


# --- resumed, and turned back -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cut(Peaked):
    """Ends the run at a scoring, as a crash would."""

    at: int = 10**6
    calls: list[int] = field(default_factory=list)

    def score(
        self, media: Tensor, prompts: Sequence[str], *, metadata: Metadata | None = None, sigma: float | None = None
    ) -> RewardOutput:
        self.calls.append(1)
        if len(self.calls) > self.at:
            raise Stopped
        return super().score(media, prompts, metadata=metadata, sigma=sigma)


@pytest.mark.parametrize("at", [9, 17, 19])
def test_a_resumed_run_neither_loses_nor_repeats_alarms(tmp_path: Path, at: int) -> None:
    """The alarm is given after rollout 5, the 17th scoring; checkpoints are made after 2 (8), 4 (14) and 6 (18)."""
    sections: dict[str, Any] = {
        "training": {"rollouts": 6, "learning_rate": 0.1, "ema": EMA, "checkpoint": {"every": 2, "keep": 2}},
        "evaluation": {"every": 1},
    }
    straight = run_toy(toy_run_config(tmp_path / "straight", **sections), reward=Peaked())
    folder = tmp_path / "cut"
    with pytest.raises(Stopped):
        run_toy(toy_run_config(folder, **sections), reward=Cut(at=at))
    resumed = run_toy(toy_run_config(folder, **sections, resume="latest"), reward=Peaked())
    assert straight["alarms"] == {"heldout_drift": 1}
    same = {**without_clocks(straight), "resumed_at": resumed["resumed_at"]}
    assert without_clocks(resumed) == same
    assert read_run(folder).alarms == read_run(tmp_path / "straight").alarms
    for file in ("best/" + WEIGHTS, WEIGHTS):
        assert (folder / file).read_bytes() == (tmp_path / "straight" / file).read_bytes()


def test_best_weights_go_back_with_the_run(tmp_path: Path) -> None:
    """What was the best after the checkpoint is not the best of a run that goes on from it."""
    sections: dict[str, Any] = {
        "training": {"rollouts": 6, "ema": EMA, "checkpoint": {"every": 1, "keep": 9}},
        "evaluation": {"every": 1},
    }
    run_toy(toy_run_config(tmp_path, **sections))
    files = {each.rollout: (each.folder / f"best.{WEIGHTS}") for each in list_checkpoints(tmp_path)}
    assert len({file.read_bytes() for file in files.values() if file.exists()}) == 5  # of 1 to 5, as they went by
    assert files[6].read_bytes() != (tmp_path / "best" / WEIGHTS).read_bytes()  # it was made before the last evaluation
    third = files[3].read_bytes()
    again = toy_run_config(
        tmp_path,
        **{**sections, "training": {**sections["training"], "max_seconds": 1e-9}},
        resume="000003",
        resume_with_changes=True,
    )
    run_toy(again)
    assert (tmp_path / "best" / WEIGHTS).read_bytes() == third


def test_a_run_turns_back_when_told_to(tmp_path: Path) -> None:
    sections: dict[str, Any] = {
        "training": {"rollouts": 6, "checkpoint": {"every": 1, "keep": 9}},
        "guards": {"rollback": ["skipped_update"], "rollback_factor": 0.5},
    }
    plain, turned = tmp_path / "plain", tmp_path / "turned"
    run_toy(toy_run_config(plain, training=sections["training"]), pipeline=painter_with(LossBreaks({update(3)})))
    summary = run_toy(toy_run_config(turned, **sections), pipeline=painter_with(LossBreaks({update(3)})))
    assert summary["returns"] == [[4, 3]]
    rates = [row["learning_rate"] for row in rows_of(turned)]
    assert rates == [0.02] * 4 + [0.01] * 2
    assert "returns" not in json.loads((plain / "summary.json").read_text())
    rewards = [[row["reward"] for row in rows_of(folder)] for folder in (plain, turned)]
    assert rewards[0][:5] == rewards[1][:5]  # the update was skipped: the weights of the checkpoint are those it had
    assert rewards[0][5] != rewards[1][5]  # but the next one was half as large


def test_a_run_returns_to_the_best_when_the_held_out_score_falls(tmp_path: Path) -> None:
    sections: dict[str, Any] = {
        "training": {"rollouts": 8, "learning_rate": 0.1, "checkpoint": {"every": 1, "keep": 9}},
        "evaluation": {"every": 2, "seeds_per_prompt": 4},
        "guards": {"rollback": ["heldout_drift"]},
    }
    pipeline = painter()
    summary = run_toy(toy_run_config(tmp_path, **sections), pipeline=pipeline, reward=Hacked())
    assert summary["returns"]
    at, to = summary["returns"][0]
    assert at > to
    assert names(tmp_path).count("heldout_drift") >= 1


def test_with_no_checkpoint_to_return_to_the_run_goes_on(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = toy_run_config(tmp_path, training={"checkpoint": {"every": 0}}, guards={"rollback": ["skipped_update"]})
    summary = run_toy(config, pipeline=painter_with(LossBreaks({update(0)})))
    assert "returns" not in summary
    assert summary["rollouts"] == 3
    assert "no sound checkpoint" in capfd.readouterr().err
