"""A folder of students of noisy estimates: their kind, what each file is, who taught them, how they were trained.

``bank.json`` names the levels and what is read at each. The kind says what a file holds: the tensors of the teacher's
network that training changed, adapters over it, or a network of its own. The hash of the teacher's weights keeps a bank
from being laid over another; a teacher without weights, such as a rule or a service, is known by its name alone.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from difalign.core.protocols import NetworkReward
from difalign.core.types import Reading

BANK_FILE = "bank.json"

_FORMAT = 2  # 1 had neither kinds nor readings: its students are whole networks that read decoded, guided estimates
_KNOWN_FORMATS = (1, 2)


@dataclass(frozen=True, slots=True)
class BankLevel:
    """One student."""

    sigma: float  # the noise of the estimates that it reads
    file: str  # safetensors, beside bank.json
    sha256: str  # of the file
    steps: int  # of the optimiser, at this level
    first_loss: float  # of the first batch; of the first epoch where levels are trained together
    last_loss: float
    reading: Reading = field(default_factory=Reading)  # what it is handed


@dataclass(frozen=True, slots=True)
class TextReader:
    """What made the vectors of prompts that a student was taught with."""

    name: str  # of its card, for people
    width: int  # of its vectors
    sha256: str | None = None  # of its weights; None = it shows none


@dataclass(frozen=True, slots=True)
class StudentBank:
    """The students of one teacher, in the order in which they were trained: from clean to noisy."""

    teacher: str  # its name, for people
    teacher_sha256: str | None  # of its weights, by ``weights_sha256``; None = it has none, or shows none
    curriculum: tuple[float, ...]  # the levels that there are to be
    levels: tuple[BankLevel, ...] = ()  # that there are
    recipe: Mapping[str, str | int | float | None] = field(default_factory=dict)  # what they were trained with
    kind: str = "full"  # what a file holds
    span: tuple[float, float] | None = None  # of sigma; all of it is answered by the network of all levels
    reader: TextReader | None = None
    network: Mapping[str, Any] | None = None  # the make of a student that is no copy of its teacher, as plain values

    def __post_init__(self) -> None:
        done = tuple(level.sigma for level in self.levels)
        if done != self.curriculum[: len(done)]:
            raise ValueError(f"levels {done} are not the first of the curriculum {self.curriculum}")
        if self.span is not None and not 0 < self.span[0] <= self.span[1]:
            raise ValueError(f"span = {self.span}: give the least and the greatest sigma, above 0")

    @property
    def complete(self) -> bool:
        """Whether every level of the curriculum is there."""
        return len(self.levels) == len(self.curriculum)


def write_bank(folder: Path, bank: StudentBank) -> None:
    """Write ``bank.json``, whole or not at all; the files it names must be there before."""
    path = folder / BANK_FILE
    aside = path.with_name(f".{BANK_FILE}.writing")
    with aside.open("w", encoding="utf-8") as file:
        file.write(json.dumps({"format": _FORMAT, **asdict(bank)}, indent=2, allow_nan=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def read_bank(folder: Path) -> StudentBank:
    """What ``write_bank`` wrote.

    Raises:
        ValueError: if there is no such file, or it is not what was written.
    """
    path = folder / BANK_FILE
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file; give the folder of a bank of noise-aware students")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version = content.pop("format")
        if version in _KNOWN_FORMATS:
            return _bank(content)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path}: is no whole description of a bank ({error}); restore the file") from error
    known = " and ".join(map(str, _KNOWN_FORMATS))
    raise ValueError(f"{path}: says format {version!r}, but this version reads formats {known}")


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def reward_sha256(reward: object) -> str | None:
    """SHA-256 of the weights of a reward, or of what reads texts; None where it shows no network."""
    return weights_sha256(reward.model.state_dict()) if isinstance(reward, NetworkReward) else None


def weights_sha256(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and bits of tensors, whatever their order and device."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _bank(content: dict[str, Any]) -> StudentBank:
    span, reader = content.pop("span", None), content.pop("reader", None)
    return StudentBank(
        levels=tuple(_level(level) for level in content.pop("levels")),
        curriculum=tuple(content.pop("curriculum")),
        span=None if span is None else (span[0], span[1]),
        reader=None if reader is None else TextReader(**reader),
        **content,
    )


def _level(content: dict[str, Any]) -> BankLevel:
    read = content.pop("reading", None)
    reading = Reading() if read is None else Reading(**{**read, "sources": tuple(read["sources"])})
    return BankLevel(**content, reading=reading)
