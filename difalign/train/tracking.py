"""Figures and image grids for tensorboard, wandb, trackio and swanlab, through accelerate's trackers.

The run folder holds everything whether or not there is a tracker. None is imported before a run that names it starts,
and none talks to a server unless ``tracking.online`` says so.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from difalign.core.config import RunConfig, TrackerName
from difalign.core.config_diff import flatten
from difalign.core.config_yaml import to_yaml
from difalign.report.log import write_text_atomically
from difalign.report.records import Evaluation
from difalign.report.statistics import shared_scores

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker
    from torch import Tensor

_EVENTS = "tensorboard"  # subfolder of the run folder
_WANDB_ID = "wandb_id.txt"
_KEYS = ("rollout", "update")  # of a row of metrics: its place, not a figure


@final
class Tracking:
    """The trackers of a run on the main process; on the others, and where none is named, nothing happens."""

    def __init__(self, trackers: Sequence[GeneralTracker]) -> None:
        self._trackers = tuple(trackers)

    def figures(self, row: Mapping[str, float]) -> None:
        """One row of metrics, at its update."""
        values = {f"train/{name}": value for name, value in row.items() if name not in _KEYS}
        for tracker in self._trackers:
            tracker.log(values, step=int(row["update"]))

    def evaluation(
        self, evaluation: Evaluation, *, step: int, images: Tensor | None = None, shown: Sequence[int] = ()
    ) -> None:
        """The mean scores of an evaluation, overall and by kind of prompt, and its grid where a tracker takes images.

        Args:
            evaluation: the scores of every sample.
            step: updates taken before it.
            images: [M, C, H, W] in [0, 1].
            shown: the M records that the images belong to.
        """
        if not self._trackers:
            return
        scores = _mean_scores(evaluation)
        for tracker in self._trackers:
            tracker.log(scores, step=step)
        if images is None:
            return
        import numpy as np

        from difalign.report.images import labelled_grid

        grid = labelled_grid(images, [evaluation.records[index] for index in shown])
        pixels = np.asarray(grid.image.convert("RGB"))[None]  # [1, H, W, 3]
        for tracker in self._trackers:
            _log_images(tracker, {"heldout/samples": pixels}, step=step)

    def close(self) -> None:
        """Write out what is held back."""
        for tracker in self._trackers:
            tracker.finish()


@contextmanager
def open_tracking(config: RunConfig, *, is_main: bool, resumed_at: int | None = None) -> Iterator[Tracking]:
    """The trackers that a run names, started; they are closed however the run ends.

    Make the accelerator first: trackers ask it which process they are on.

    Args:
        config: the run.
        is_main: whether this is the process that writes.
        resumed_at: updates that a resumed run begins with; its curves go on from there where a tracker can (for
            swanlab a new run begins). None for a run that starts anew.
    """
    names = config.tracking.trackers if is_main else ()
    tracking = Tracking([_started(name, config, resumed_at) for name in names])
    try:
        yield tracking
    finally:
        tracking.close()


def _started(name: TrackerName, config: RunConfig, resumed_at: int | None) -> GeneralTracker:
    tracker = _make(name, config, resumed_at)
    tracker.start()
    if name == "tensorboard":
        # Its table of hyper-parameters opens a run of its own beside this one for every start; text does not.
        tracker.log({"config": f"```yaml\n{to_yaml(config)}```"}, step=0)
    else:
        values = flatten(config.model_dump(mode="json"))
        tracker.store_init_configuration(
            {key: value if isinstance(value, (str, int, float)) else str(value) for key, value in values.items()}
        )
    return tracker


def _make(name: TrackerName, config: RunConfig, resumed_at: int | None) -> GeneralTracker:
    from accelerate.tracking import SwanLabTracker, TensorBoardTracker, TrackioTracker, WandBTracker

    folder, options = config.run_folder, config.tracking
    folder.mkdir(parents=True, exist_ok=True)
    match name:
        case "tensorboard":
            if resumed_at is None:
                _clear_events(folder / _EVENTS)
            return TensorBoardTracker(_EVENTS, folder, purge_step=resumed_at)
        case "wandb":
            mode = "online" if options.online else "offline"
            again = None if resumed_at is None else "allow"
            run = _wandb_id(folder / _WANDB_ID, keep=resumed_at is not None)
            return WandBTracker(options.project, name=config.name, dir=str(folder), mode=mode, id=run, resume=again)
        case "trackio":
            # Keeps everything on this machine; knows a run by its name.
            again = "never" if resumed_at is None else "allow"
            return TrackioTracker(options.project, name=config.name, resume=again)
        case "swanlab":
            mode = "cloud" if options.online else "offline"
            logs = str(folder / "swanlab")
            return SwanLabTracker(options.project, experiment_name=config.name, logdir=logs, mode=mode)


def _clear_events(folder: Path) -> None:
    """Remove the curves of an earlier run: two runs in one folder are unreadable."""
    for file in folder.glob("events.out.tfevents.*"):
        file.unlink()


def _wandb_id(file: Path, *, keep: bool) -> str:
    """The id under which wandb knows a run: the one in the run's folder if it is to be kept, else a new one."""
    if keep and file.is_file():
        return file.read_text(encoding="utf-8").strip()
    name = secrets.token_hex(8)
    write_text_atomically(file, f"{name}\n")
    return name


def _log_images(tracker: Any, images: Mapping[str, object], *, step: int) -> None:
    """accelerate's trackers take images where they have the method; trackio's has none."""
    if not hasattr(tracker, "log_images"):
        return
    if tracker.name == "tensorboard":
        tracker.log_images(images, step=step, dataformats="NHWC")
        tracker.tracker.flush()
    else:
        tracker.log_images(images, step=step)


def _mean_scores(evaluation: Evaluation) -> dict[str, float]:
    records = [record for record in evaluation.records if not math.isnan(record.scores["total"])]
    means = {f"heldout/{name}": _mean([r.scores[name] for r in records]) for name in shared_scores(records)}
    for kind in dict.fromkeys(record.kind for record in records if record.kind):
        of_kind = [record.scores["total"] for record in records if record.kind == kind]
        means[f"heldout_by_kind/{kind}"] = _mean(of_kind)
    return means


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
