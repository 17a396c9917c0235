"""Walks seen at some levels of noise, on disk: in shards that are whole or absent, each a safetensors file.

Row r of the store is sample ``r % samples`` of prompt ``r // samples``, and its noise is a function of (seed, prompt,
sample) alone: a store can be made by any number of processes, cut short and gone on with, or made again elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, final

from torch import Tensor

from difalign.core.errors import ConfigError
from difalign.core.rng import row_seed
from difalign.report.log import plain, write_text_atomically

INDEX_FILE = "index.json"
FINAL = "final"  # key of the finished samples

_FORMAT = 1
_SHOWN = 60  # characters of a value


@dataclass(frozen=True, slots=True)
class StoredPrompt:
    """A prompt and what its file says beside it."""

    text: str
    metadata: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class StorePlan:
    """What a store is to hold; whoever goes on with it must want the same."""

    prompts: tuple[StoredPrompt, ...]
    samples: int  # of each prompt
    seed: int
    shard_rows: int
    settings: Mapping[str, object]  # whatever else decides its content, as JSON has it

    @property
    def rows(self) -> int:
        """How many walks there are to be."""
        return len(self.prompts) * self.samples

    @property
    def shards(self) -> int:
        """How many files they fill."""
        return -(-self.rows // self.shard_rows)

    def rows_of(self, shard: int) -> range:
        """The rows of a shard; the last may be shorter."""
        return range(shard * self.shard_rows, min((shard + 1) * self.shard_rows, self.rows))

    def prompt_of(self, row: int) -> StoredPrompt:
        """The prompt of a row."""
        return self.prompts[row // self.samples]

    def seed_of(self, row: int) -> int:
        """The seed of a row's initial latent."""
        return row_seed(self.seed, self.prompt_of(row).text, row % self.samples, 0)

    def as_json(self) -> dict[str, Any]:
        """The content of the index."""
        return {
            "format": _FORMAT,
            "settings": {**self.settings, "samples": self.samples, "seed": self.seed, "shard_rows": self.shard_rows},
            "rows": self.rows,
            "shards": self.shards,
            "prompts": [{"prompt": prompt.text, "metadata": plain(prompt.metadata)} for prompt in self.prompts],
        }


def level_key(source: str, sigma: float) -> str:
    """The key of what ``source`` shows at a level."""
    return f"{source}/{sigma:.6g}"


@final
class EstimateStore:
    """A folder of shards; open it with ``open_store``."""

    def __init__(self, folder: Path, plan: StorePlan, levels: Mapping[str, float]) -> None:
        self.folder = folder
        self.plan = plan
        self._levels = levels
        self._handles: dict[int, Any] = {}

    @property
    def sigmas(self) -> tuple[float, ...]:
        """The levels as they were asked for."""
        return tuple(float(sigma) for sigma in self._levels)

    @cached_property
    def mark(self) -> str:
        """Changes with anything that decides the content."""
        return hashlib.sha256(json.dumps(self.plan.as_json(), sort_keys=True).encode()).hexdigest()

    def level(self, sigma: float) -> float:
        """The noise of the grid that was asked for as ``sigma``, which may be rounded."""
        return self._levels[f"{sigma!r}"]

    def shard_path(self, shard: int) -> Path:
        """Where a shard is, or will be."""
        return self.folder / f"shard_{shard:05d}.safetensors"

    def labels_path(self, shard: int) -> Path:
        """Where the teacher's scores of a shard are, or will be."""
        return self.folder / f"shard_{shard:05d}.labels.json"

    def missing(self) -> list[int]:
        """The shards that are not there yet."""
        return [shard for shard in range(self.plan.shards) if not self.shard_path(shard).is_file()]

    def write(self, shard: int, tensors: Mapping[str, Tensor]) -> None:
        """Write a shard, whole or not at all."""
        from safetensors.torch import save_file

        rows = len(self.plan.rows_of(shard))
        assert all(tensor.shape[0] == rows for tensor in tensors.values()), (shard, rows)
        path = self.shard_path(shard)
        aside = path.with_name(f".{path.name}.writing")
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, aside)
        with aside.open("rb+") as file:
            os.fsync(file.fileno())
        aside.chmod(0o644)  # safetensors makes 0600, which would hide the file from other readers
        aside.replace(path)

    def tensor(self, shard: int, key: str) -> Tensor:
        """What a shard holds under a key, [rows, ...]; mapped into memory, so that only what is used is read.

        Raises:
            ConfigError: if the shard is missing or damaged.
        """
        if shard not in self._handles:
            self._handles[shard] = self._open(shard)
        return self._handles[shard].get_tensor(key)

    def _open(self, shard: int) -> Any:
        from safetensors import SafetensorError, safe_open

        path, rows = self.shard_path(shard), len(self.plan.rows_of(shard))
        if not path.is_file():
            raise ConfigError(f"{path}: is missing; run the stage generate again, which makes what is not there")
        try:
            handle = safe_open(path, framework="pt")
            whole = handle.get_slice(FINAL).get_shape()[0] == rows
        except (SafetensorError, OSError) as error:
            raise ConfigError(f"{path}: is damaged ({error}); remove it and run the stage generate again") from None
        if not whole:
            raise ConfigError(f"{path}: does not hold {rows} walks; remove it and run the stage generate again")
        return handle


def open_store(folder: Path, plan: StorePlan, *, levels: Mapping[float, float] | None = None) -> EstimateStore:
    """The store in a folder, once it is sure that it is the one that is wanted.

    Args:
        folder: of the store.
        plan: what it is to hold.
        levels: sigma as it was asked for -> as the grid has it; given by whoever fills the store: the index is written
            where there is none.

    Raises:
        ConfigError: if the folder holds a store of other settings, naming what differs, or none and none is made.
    """
    path = folder / INDEX_FILE
    if not path.is_file():
        if levels is None:
            raise ConfigError(f"{folder}: holds no estimates yet; run the stage generate first")
        named = {f"{sigma!r}": level for sigma, level in levels.items()}
        write_text_atomically(path, json.dumps({**plan.as_json(), "levels": named}, indent=1, allow_nan=False) + "\n")
    found = _read_index(path)
    _check_same(path, found, plan.as_json())
    return EstimateStore(folder, plan, found["levels"])


def sweep(folder: Path) -> None:
    """Remove what was being written when a process was killed; nobody may be writing there."""
    for pattern in (".*.writing", ".*.tmp"):
        for left in folder.rglob(pattern):
            left.unlink()


def store_exists(folder: Path) -> bool:
    """Whether a store was begun in a folder."""
    return (folder / INDEX_FILE).is_file()


def _read_index(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if (
        not isinstance(found, dict)
        or not isinstance(found.get("settings"), dict)
        or not {"prompts", "levels"} <= found.keys()
    ):
        raise ConfigError(f"{path}: is no index of estimates; use another folder, or remove this one")
    if found.get("format") != _FORMAT:
        raise ConfigError(
            f"{path}: says format {found.get('format')!r}, but this version reads format {_FORMAT}; begin anew"
        )
    return found


def _check_same(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    wanted = json.loads(json.dumps(wanted))
    old, new = found["settings"], wanted["settings"]
    differing = [
        f"{key} = {_short(old.get(key))} there, {_short(new.get(key))} here"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    ]
    if found["prompts"] != wanted["prompts"]:
        differing.append(f"other prompts ({len(found['prompts'])} there, {len(wanted['prompts'])} here)")
    if differing:
        raise ConfigError(
            f"{path.parent}: holds estimates of other settings: {'; '.join(differing)}; use another folder, or the "
            "settings that it was begun with"
        )


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


@dataclass(frozen=True)
class ShardLabels:
    """The teacher's raw scores of a shard's finished samples."""

    teacher: str  # SHA-256 of its weights, or what else names it
    scores: tuple[float | None, ...]  # float32 as they are; None = could not be scored
    errors: Mapping[int, str]  # row of the shard -> why

    @cached_property
    def valid(self) -> tuple[int, ...]:
        """The rows that have a score."""
        return tuple(row for row, score in enumerate(self.scores) if score is not None)


def write_labels(store: EstimateStore, shard: int, labels: ShardLabels) -> None:
    """Write the scores beside their shard, whole or not at all."""
    content = {
        "format": _FORMAT,
        "teacher": labels.teacher,
        "dtype": "float32",
        "scores": list(labels.scores),
        "errors": {str(row): text for row, text in labels.errors.items()},
    }
    write_text_atomically(store.labels_path(shard), json.dumps(content, indent=1, allow_nan=False) + "\n")


def read_labels(store: EstimateStore, shard: int, *, teacher: str) -> ShardLabels | None:
    """The scores of a shard, None where there are none yet.

    Raises:
        ConfigError: if the file is damaged or of another teacher.
    """
    path = store.labels_path(shard)
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        labels = ShardLabels(
            content["teacher"],
            tuple(None if score is None else float(score) for score in content["scores"]),
            {int(row): str(text) for row, text in content["errors"].items()},
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        labels = None
    if labels is None or len(labels.scores) != len(store.plan.rows_of(shard)):
        raise ConfigError(f"{path}: holds no scores of its shard; remove it and run the stage label again")
    if labels.teacher != teacher:
        raise ConfigError(
            f"{path}: the scores are another teacher's, or of other weights; use another folder, or remove the files "
            f"{store.folder}/*.labels.json and run the stage label again"
        )
    return labels


def read_all_labels(store: EstimateStore, *, teacher: str) -> list[ShardLabels]:
    """The scores of all shards.

    Raises:
        ConfigError: if some are missing, damaged or of another teacher.
    """
    found = [read_labels(store, shard, teacher=teacher) for shard in range(store.plan.shards)]
    lacking = [shard for shard, labels in enumerate(found) if labels is None]
    if lacking:
        raise ConfigError(f"{store.folder}: {len(lacking)} shards have no scores yet; run the stage label first")
    return [labels for labels in found if labels is not None]
