"""A folder of students, one a level of noise: what each file is, which teacher it differs from, how it was trained.

``bank.json`` names the levels; the file of a level holds the tensors of the network that training changed, and no
others: the rest are the teacher's. The hash of the teacher's weights keeps a bank from being laid over another.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

BANK_FILE = "bank.json"

_FORMAT = 1


@dataclass(frozen=True, slots=True)
class BankLevel:
    """One student."""

    sigma: float  # the noise of the estimates that it reads
    file: str  # safetensors, beside bank.json
    sha256: str  # of the file
    steps: int  # of the optimiser, at this level
    first_loss: float  # of the first batch
    last_loss: float


@dataclass(frozen=True, slots=True)
class StudentBank:
    """The students of one teacher, in the order in which they were trained: from clean to noisy."""

    teacher: str  # its name, for people
    teacher_sha256: str  # of its weights, by ``weights_sha256``
    curriculum: tuple[float, ...]  # the levels that there are to be
    levels: tuple[BankLevel, ...] = ()  # that there are
    recipe: Mapping[str, str | int | float | None] = field(default_factory=dict)  # what they were trained with

    def __post_init__(self) -> None:
        done = tuple(level.sigma for level in self.levels)
        if done != self.curriculum[: len(done)]:
            raise ValueError(f"levels {done} are not the first of the curriculum {self.curriculum}")

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
        if version == _FORMAT:
            levels = tuple(BankLevel(**level) for level in content.pop("levels"))
            return StudentBank(levels=levels, curriculum=tuple(content.pop("curriculum")), **content)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path}: is no whole description of a bank ({error}); restore the file") from error
    raise ValueError(f"{path}: says format {version!r}, but this version reads format {_FORMAT}")


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_sha256(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and bits of tensors, whatever their order and device."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
