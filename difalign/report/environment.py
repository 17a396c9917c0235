"""On what a run took place: versions, devices, command; nothing that names a person or a machine."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "difalign",
    "torch",
    "diffusers",
    "transformers",
    "accelerate",
    "peft",
    "safetensors",
    "numpy",
    "pillow",
    "pydantic",
    "xformers",
)
_GIT_TIMEOUT = 5.0  # seconds; a slow network file system must not hold up a run


def describe_environment(
    *, arguments: Sequence[str] | None = None, packages: Sequence[str] = PACKAGES, processes: int = 1
) -> dict[str, Any]:
    """The content of ``environment.json``.

    Host and user names are never read, and paths in the command line lose their folders unless they lie below
    the current one.

    Args:
        arguments: the command line, ``sys.argv`` by default.
        packages: distributions whose versions are noted; those not installed are left out.
        processes: how many processes take part.
    """
    return {
        "command": [portable_argument(word) for word in (sys.argv if arguments is None else arguments)],
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cpu_count": _usable_cpus(),
        "processes": processes,
        "devices": _devices(),
        "packages": package_versions(packages),
        "git_commit": git_commit(Path(__file__)),
    }


def package_versions(packages: Sequence[str]) -> dict[str, str]:
    """Versions of the installed ones among ``packages``."""
    versions: dict[str, str] = {}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def portable_argument(word: str) -> str:
    """A word of a command line without absolute folders: ``/home/me/x.yaml`` and ``key=/home/me/x.yaml`` lose them."""
    prefix, separator, value = word.partition("=")
    if separator and not _is_absolute(prefix):
        return f"{prefix}={portable_argument(value)}"
    if not _is_absolute(word):
        return word
    path = Path(word).expanduser()
    try:
        return path.relative_to(Path.cwd()).as_posix()
    except ValueError:
        return re.split(r"[/\\]", word.rstrip("/\\"))[-1]


def git_commit(file: Path) -> str | None:
    """The commit of the checkout that tracks ``file``, with "+changes" if files differ; None outside of one.

    An installed package inside some other project's checkout is not tracked by it, so that commit is not taken.
    """
    folder = file.resolve().parent
    if _git(folder, "ls-files", "--error-unmatch", file.name) is None:
        return None
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return None
    return f"{commit}+changes" if _git(folder, "status", "--porcelain", "--untracked-files=no") else commit


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=_GIT_TIMEOUT, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _is_absolute(word: str) -> bool:
    return word.startswith(("/", "~", "\\\\")) or re.match(r"[A-Za-z]:[/\\]", word) is not None


def _usable_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _processor() -> str:
    """The processor's model where the system tells it, else its architecture."""
    listing = Path("/proc/cpuinfo")
    if listing.is_file():
        for line in listing.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def _devices() -> list[str]:
    """The names of the accelerators torch sees; empty on a machine without one."""
    import torch

    if torch.cuda.is_available():
        return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return ["Apple MPS"] if torch.backends.mps.is_available() else []
