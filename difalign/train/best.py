"""The weights of the best evaluation: a run keeps them in its folder ``best``, and its checkpoints by a second name."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

from difalign.train.checkpoint import Write

BEST_FOLDER = "best"

_PREFIX = "best."  # of its files in a checkpoint
_ASIDE = ".best.writing"


def keep_best(run_folder: Path, save: Callable[[Path], object]) -> Path:
    """Replace what was kept by what ``save`` writes into the folder it is given; returns that folder.

    Nothing in it is changed later, only replaced: checkpoints hold the same files under another name.
    """
    aside, best = run_folder / _ASIDE, run_folder / BEST_FOLDER
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    save(aside)
    _replace(best, aside)
    return best


def forget_best(run_folder: Path) -> None:
    """Remove what an earlier run kept."""
    for folder in (run_folder / _ASIDE, run_folder / BEST_FOLDER):
        shutil.rmtree(folder, ignore_errors=True)


def best_files(run_folder: Path) -> dict[str, Write]:
    """What writes the kept weights into a checkpoint, by name of the file."""
    kept = sorted(path for path in (run_folder / BEST_FOLDER).glob("*") if path.is_file())
    return {f"{_PREFIX}{path.name}": partial(_link, path) for path in kept}


def return_best(run_folder: Path, checkpoint: Path) -> None:
    """Keep what the checkpoint says was the best then, or nothing if it says nothing."""
    stored = sorted(checkpoint.glob(f"{_PREFIX}*"))
    if not stored:
        forget_best(run_folder)
        return
    keep_best(run_folder, lambda folder: [_link(path, folder / path.name.removeprefix(_PREFIX)) for path in stored])


def _replace(best: Path, aside: Path) -> None:
    shutil.rmtree(best, ignore_errors=True)
    aside.rename(best)


def _link(source: Path, target: Path) -> None:
    """The same bytes under another name, copied where the file system cannot link."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
