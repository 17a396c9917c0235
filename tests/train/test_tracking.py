"""Trackers get every figure, evaluation and grid of a run; tensorboard's file is read back by tensorboard itself."""

from __future__ import annotations

import io
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from difalign.core.config import RunConfig
from difalign.core.errors import ConfigError
from difalign.report.log import METRICS_FILE
from difalign.report.records import Evaluation, SampleRecord
from difalign.train.runtime import Runtime
from difalign.train.tracking import Tracking, open_tracking
from tests.train.small_runs import HELDOUT, rows_of, run_toy, toy_run_config

TENSORBOARD = {"trackers": ["tensorboard"]}


def events(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    files = list((folder / "tensorboard").glob("events.*"))
    assert len(files) == 1
    return EventAccumulator(str(files[0]), size_guidance={"images": 0, "scalars": 0, "tensors": 0}).Reload()


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four rollouts, an evaluation in between, written to tensorboard."""
    folder = tmp_path_factory.mktemp("tracked")
    run_toy(toy_run_config(folder, tracking=TENSORBOARD, evaluation={"every": 2}, training={"rollouts": 4}))
    return folder


def test_tensorboard_holds_every_figure_of_every_update(tracked: Path) -> None:
    log, rows = events(tracked), rows_of(tracked)
    assert len(rows) == 4
    names = set(rows[0]) - {"rollout", "update"}
    assert {name.removeprefix("train/") for name in log.Tags()["scalars"] if name.startswith("train/")} == names
    for name in ("reward", "grad_norm", "learning_rate", "seconds"):
        curve = log.Scalars(f"train/{name}")
        assert [point.step for point in curve] == [0, 1, 2, 3]
        np.testing.assert_allclose([point.value for point in curve], [row[name] for row in rows], rtol=1e-6)


def test_tensorboard_holds_the_evaluations(tracked: Path) -> None:
    import json

    log = events(tracked)
    stored = [json.loads(path.read_text()) for path in sorted((tracked / "evaluations").glob("*.json"))]
    curve = log.Scalars("heldout/total")
    assert [point.step for point in curve] == [0, 2, 4]  # updates taken before
    means = [np.mean([record["scores"]["total"] for record in evaluation["records"]]) for evaluation in stored]
    np.testing.assert_allclose([point.value for point in curve], means, rtol=1e-6)
    kinds = {name for name in log.Tags()["scalars"] if name.startswith("heldout_by_kind/")}
    assert kinds == {f"heldout_by_kind/{kind}" for kind in {prompt.kind for prompt in HELDOUT}}


def test_tensorboard_holds_the_grid_of_the_run_folder(tracked: Path) -> None:
    from PIL import Image

    shown = events(tracked).Images("heldout/samples")
    assert [image.step for image in shown] == [0, 2, 4]
    for image, file in zip(shown, sorted((tracked / "evaluations").glob("*.png")), strict=True):
        ours = np.asarray(Image.open(file).convert("RGB"))
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(image.encoded_image_string))), ours)


def test_tensorboard_holds_the_configuration(tracked: Path) -> None:
    text = events(tracked).Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "learning_rate: 0.02" in text


def test_a_run_that_replaces_another_replaces_its_curves(tmp_path: Path) -> None:
    for overwrite in (False, True):
        run_toy(toy_run_config(tmp_path, tracking=TENSORBOARD, training={"rollouts": 1}, overwrite=overwrite))
    assert len(events(tmp_path).Scalars("train/reward")) == 1


def test_curves_of_a_resumed_run_go_on_where_it_does(tmp_path: Path) -> None:
    """A run that broke off after four updates goes on from its checkpoint after two."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = toy_run_config(tmp_path, tracking=TENSORBOARD)
    for resumed_at, updates, reward in ((None, range(4), 0.25), (2, range(2, 5), 0.5)):
        runtime = Runtime()
        with open_tracking(config, is_main=True, resumed_at=resumed_at) as tracking:
            for update in updates:
                tracking.figures({"rollout": update, "update": update, "reward": reward})
        runtime.close()
    curve = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("train/reward")
    assert [(point.step, point.value) for point in curve] == [(0, 0.25), (1, 0.25), (2, 0.5), (3, 0.5), (4, 0.5)]


def test_trackers_do_not_change_a_run(tmp_path: Path, tracked: Path) -> None:
    run_toy(toy_run_config(tmp_path, evaluation={"every": 2}, training={"rollouts": 4}))
    assert [row["reward"] for row in rows_of(tmp_path)] == [row["reward"] for row in rows_of(tracked)]
    assert not (tmp_path / "tensorboard").exists()


def test_a_run_that_fails_keeps_what_was_tracked(tmp_path: Path) -> None:
    config = toy_run_config(tmp_path, tracking=TENSORBOARD, training={"rollouts": 2, "learning_rate": 1e-30})
    with pytest.raises(RuntimeError, match="no weight moved"):
        run_toy(config)
    assert [point.step for point in events(tmp_path).Scalars("heldout/total")] == [0]


# --- trackers that are not installed here: what they are asked for -------------------------------------------------


class Recorded(ModuleType):
    """A tracker's module that notes its calls."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.begun: dict[str, Any] = {}
        self.logged: list[tuple[dict[str, Any], int | None]] = []
        self.config: Any = self
        self.finished = False

    def init(self, **options: Any) -> Recorded:
        self.begun = options
        return self

    def log(self, values: dict[str, Any], step: int | None = None) -> None:
        self.logged.append((values, step))

    def update(self, values: dict[str, Any], **options: Any) -> None:
        self.stored = values

    def __setitem__(self, key: str, value: str) -> None:
        self.framework = (key, value)

    def Image(self, pixels: np.ndarray) -> tuple[int, ...]:
        return pixels.shape

    def finish(self) -> None:
        self.finished = True


def use(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, *, online: bool = False, resumed_at: int | None = None
) -> Recorded:
    """Track one row and one evaluation with a recorded ``name``."""
    import torch

    module = Recorded(name)
    monkeypatch.setitem(sys.modules, name, module)
    tracking = {"trackers": [name], "project": "colours", "online": online}
    config = toy_run_config(folder, name="mine", tracking=tracking)
    runtime = Runtime()
    record = SampleRecord("a red circle", "single", 0, {"total": 0.25}, 0)
    with open_tracking(config, is_main=True, resumed_at=resumed_at) as opened:
        opened.figures({"rollout": 0, "update": 3, "reward": 0.5})
        opened.evaluation(Evaluation(0, "base", (record,)), step=4, images=torch.zeros(1, 3, 8, 8), shown=(0,))
    runtime.close()
    return module


@pytest.mark.parametrize(("name", "local", "online"), [("wandb", "offline", "online"), ("swanlab", "offline", "cloud")])
def test_nothing_is_sent_unasked(
    name: str, local: str, online: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = use(name, tmp_path, monkeypatch)
    assert module.begun["mode"] == local
    assert module.begun["project"] == "colours"
    assert str(tmp_path) in (module.begun.get("dir") or module.begun.get("logdir"))
    assert use(name, tmp_path, monkeypatch, online=True).begun["mode"] == online


@pytest.mark.parametrize("name", ["wandb", "trackio", "swanlab"])
def test_figures_and_scores_of_the_other_trackers(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = use(name, tmp_path, monkeypatch)
    assert ({"train/reward": 0.5}, 3) in module.logged
    assert ({"heldout/total": 0.25, "heldout_by_kind/single": 0.25}, 4) in module.logged
    images = [values["heldout/samples"] for values, _ in module.logged if "heldout/samples" in values]
    assert len(images) == (0 if name == "trackio" else 1)  # accelerate's has no images for trackio
    if images:
        (shape,) = images[0]
        assert len(shape) == 3
        assert shape[2] == 3
    assert module.stored["training.learning_rate"] == 0.02
    assert module.finished


def test_wandb_and_trackio_take_up_the_run_that_was_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, again = use("wandb", tmp_path, monkeypatch), use("wandb", tmp_path, monkeypatch, resumed_at=3)
    anew = use("wandb", tmp_path, monkeypatch)
    assert first.begun["id"] == again.begun["id"] != anew.begun["id"]
    assert [module.begun["resume"] for module in (first, again, anew)] == [None, "allow", None]
    assert use("trackio", tmp_path, monkeypatch).begun["resume"] == "never"
    assert use("trackio", tmp_path, monkeypatch, resumed_at=3).begun["resume"] == "allow"


def test_only_the_main_process_tracks(tmp_path: Path) -> None:
    config = toy_run_config(tmp_path / "none", tracking=TENSORBOARD)
    with open_tracking(config, is_main=False) as tracking:
        tracking.figures({"rollout": 0, "update": 0, "reward": math.nan})
    assert not (tmp_path / "none").exists()


def test_without_trackers_nothing_is_drawn() -> None:
    class Unread:
        @property
        def records(self) -> tuple[SampleRecord, ...]:
            raise AssertionError("read without need")

    Tracking(()).evaluation(Unread(), step=0)  # type: ignore[arg-type]


def test_a_tracker_that_is_not_installed_is_bad_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from difalign.build import preflight

    config = RunConfig.model_validate(
        {"tracking": {"trackers": ["tensorboard", "trackio"]}, "output_dir": str(tmp_path)}
    )
    known = {"tensorboard": object()}
    monkeypatch.setattr(preflight.importlib.util, "find_spec", known.get)
    with pytest.raises(ConfigError, match=r"trackio is not installed; pip install difalign\[track\]"):
        preflight.prepare(config)
    assert not (tmp_path / METRICS_FILE).exists()
