"""The folder that a bank of students grows in: whether a run may go on in it."""

from __future__ import annotations

from pathlib import Path

from difalign.core.errors import ConfigError
from difalign.core.student_bank import BANK_FILE, StudentBank, read_bank


def open_bank(folder: Path, wanted: StudentBank, *, resume: bool) -> StudentBank:
    """The bank to go on with: the one that is there, if it may be, or the empty one that is wanted.

    Raises:
        ConfigError: if there is one and ``resume`` is not asked for, or it is of another teacher, kind or recipe.
    """
    if not (folder / BANK_FILE).exists():
        folder.mkdir(parents=True, exist_ok=True)
        return wanted
    if not resume:
        raise ConfigError(f"{folder}: already holds a bank; give another folder, or resume it")
    found = read_bank(folder)
    if found.teacher_sha256 != wanted.teacher_sha256 or (
        wanted.teacher_sha256 is None and found.teacher != wanted.teacher
    ):
        raise ConfigError(f"{folder}: its students were taught by {found.teacher!r} with other weights; begin anew")
    differing = [name for name, value in wanted.recipe.items() if found.recipe.get(name) != value]
    whole = ("curriculum", "kind", "span", "reader", "network")
    differing = [name for name in whole if getattr(found, name) != getattr(wanted, name)] + differing
    if differing:
        raise ConfigError(f"{folder}: was begun with another {', '.join(differing)}; begin anew in another folder")
    return found
