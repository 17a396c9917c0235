"""What a folder holds, to be compared before and after."""

from __future__ import annotations

from pathlib import Path


def file_names(folder: Path) -> list[str]:
    """Every file below ``folder``, relative to it, sorted."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def file_contents(folder: Path) -> dict[str, bytes]:
    """The bytes of every file below ``folder``, by its relative name."""
    return {name: (folder / name).read_bytes() for name in file_names(folder)}
