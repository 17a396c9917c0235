"""Checkpoints on disk: a folder each, whole or not there at all, and able to say when it was damaged.

A checkpoint is written aside, synced, and renamed; the manifest names every file with its size and SHA-256. What
the files hold is the business of ``difalign.train.state``. Nothing here needs torch, so that a run can be refused
before any is loaded.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

CHECKPOINTS_FOLDER = "checkpoints"
MANIFEST_FILE = "manifest.json"

_FORMAT = 1
_NAME = re.compile(r"\d{6,}")
_BEING_WRITTEN = ".writing"  # suffix of a folder that is not a checkpoint yet
_BEING_REMOVED = ".removing"  # suffix of one that is none any more
_BLOCK = 1 << 20  # bytes read at once

Write = Callable[[Path], object]  # fills the file it is given


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A folder that holds the state of a run after ``rollout`` rollouts."""

    folder: Path

    @property
    def rollout(self) -> int:
        """How many rollouts it has behind it."""
        return int(self.folder.name)


def list_checkpoints(run_folder: Path) -> tuple[Checkpoint, ...]:
    """The checkpoints of a run, oldest first, damaged ones among them."""
    folder = run_folder / CHECKPOINTS_FOLDER
    if not folder.is_dir():
        return ()
    found = (Checkpoint(path) for path in folder.iterdir() if _NAME.fullmatch(path.name) and path.is_dir())
    return tuple(sorted(found, key=lambda checkpoint: checkpoint.rollout))


def save_checkpoint(run_folder: Path, rollout: int, files: Mapping[str, Write], *, keep: int) -> Checkpoint:
    """Write a checkpoint, then remove all but the newest ``keep``.

    At every moment the older ones are complete: none is touched before the new one is on the disk under its name.

    Args:
        run_folder: the run's; the checkpoint becomes its ``checkpoints/NNNNNN``.
        rollout: how many rollouts are done.
        files: what fills each file, by name.
        keep: how many checkpoints stay, this one included.

    Raises:
        OSError: if the disk is full or cannot be written; what was begun is removed, older checkpoints stay.
    """
    parent = run_folder / CHECKPOINTS_FOLDER
    parent.mkdir(parents=True, exist_ok=True)
    sweep(run_folder)
    target = parent / f"{rollout:06d}"
    aside = parent / f".{target.name}{_BEING_WRITTEN}"
    try:
        aside.mkdir()
        _fill(aside, rollout, files)
        if target.exists():
            _move_out(target)
        aside.rename(target)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    _sync(parent)
    for old in list_checkpoints(run_folder)[:-keep]:
        remove_checkpoint(old)
    sweep(run_folder)
    return Checkpoint(target)


def remove_checkpoint(checkpoint: Checkpoint) -> None:
    """Remove a checkpoint; one whose removal was cut off is not taken for a checkpoint."""
    shutil.rmtree(_move_out(checkpoint.folder))


def sweep(run_folder: Path) -> None:
    """Remove what a process that was killed left half written or half removed."""
    for suffix in (_BEING_WRITTEN, _BEING_REMOVED):
        for path in (run_folder / CHECKPOINTS_FOLDER).glob(f".[0-9]*{suffix}"):
            shutil.rmtree(path)


def find_damage(checkpoint: Checkpoint) -> str | None:
    """What is wrong with a checkpoint, in a few words that name the file; None for a sound one.

    Every file is read: its size and its SHA-256 must be those of the manifest.
    """
    try:
        manifest = json.loads((checkpoint.folder / MANIFEST_FILE).read_text(encoding="utf-8"))
        stated = {str(name): (int(entry["bytes"]), str(entry["sha256"])) for name, entry in manifest["files"].items()}
        version, rollout = manifest["format"], manifest["rollout"]
    except FileNotFoundError:
        return f"{MANIFEST_FILE} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST_FILE} cannot be read"
    if version != _FORMAT:
        return f"{MANIFEST_FILE} says format {version!r}, but this version reads format {_FORMAT}"
    if rollout != checkpoint.rollout:
        return f"{MANIFEST_FILE} is of rollout {rollout!r}"
    for name, (size, digest) in stated.items():
        if damage := _damage_of(checkpoint.folder / name, size, digest):
            return damage
    return None


def _damage_of(path: Path, size: int, digest: str) -> str | None:
    try:
        actual = path.stat().st_size
        if actual != size:
            return f"{path.name} has {actual} bytes instead of {size}"
        return None if _sha256(path) == digest else f"{path.name} has another SHA-256 than the manifest says"
    except FileNotFoundError:
        return f"{path.name} is missing"
    except OSError as error:
        return f"{path.name} cannot be read ({error.strerror})"


def _fill(folder: Path, rollout: int, files: Mapping[str, Write]) -> None:
    entries: dict[str, dict[str, int | str]] = {}
    for name, write in files.items():
        path = folder / name
        write(path)
        path.chmod(0o644)  # some writers make 0600, which would hide the file from other readers
        _sync(path)
        entries[name] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
    manifest = {"format": _FORMAT, "rollout": rollout, "files": entries}
    path = folder / MANIFEST_FILE
    path.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    _sync(path)
    _sync(folder)


def _move_out(folder: Path) -> Path:
    """Take a checkpoint its name, so that nothing takes it for one while it is being removed."""
    return folder.rename(folder.with_name(f".{folder.name}{_BEING_REMOVED}"))


def _sync(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
