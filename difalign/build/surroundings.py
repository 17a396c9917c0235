"""What the environment variables say to a run: processes, devices, threads, precision, caches.

Libraries pass over a variable that they do not understand, or wait for ever for a process that nobody started. Here it
is refused, before any of them is imported.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from difalign.core.config_errors import nearest
from difalign.core.errors import ConfigError, in_one_message
from difalign.core.user_path import user_path

if TYPE_CHECKING:
    from difalign.core.config import RunConfig

_BY_LAUNCHER = "start the run with accelerate launch, which sets it, or unset {unset}"
_DEVICES = re.compile(r"(\d+|(GPU|MIG)-[0-9A-Za-z/-]+)(,(\d+|(GPU|MIG)-[0-9A-Za-z/-]+))*|-1|")
_THREADS = re.compile(r"[1-9]\d*(,[1-9]\d*)*")  # OpenMP: a number, or one a level of nesting
_LARGEST_PORT = 65535
_PRECISIONS = ("no", "fp16", "bf16")


@dataclass(frozen=True, slots=True)
class Launch:
    """Which process of how many this is."""

    rank: int = 0
    world: int = 1


def read_launch(environ: Mapping[str, str] = os.environ) -> Launch:
    """What a launcher has said about the processes; one process alone where none has.

    Raises:
        ConfigError: if the variables are no numbers, contradict one another, or one of them is missing.
    """
    numbers: dict[str, int] = {}
    problems: list[str] = []
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        text = environ.get(name, "")
        if text.isdecimal():
            numbers[name] = int(text)
        elif text:
            problems.append(f"{name} = {text!r}: must be a number; {_BY_LAUNCHER.format(unset=name)}")
    if not problems:
        problems += _contradictions(numbers, environ)
    if problems:
        raise ConfigError(in_one_message(problems, source="environment"))
    return Launch(numbers.get("RANK", 0), numbers.get("WORLD_SIZE", 1))


def _contradictions(numbers: Mapping[str, int], environ: Mapping[str, str]) -> Iterator[str]:
    world, rank = numbers.get("WORLD_SIZE", 1), numbers.get("RANK", 0)
    if world < 1:
        yield f"WORLD_SIZE = {world}: must be at least 1; {_BY_LAUNCHER.format(unset='WORLD_SIZE')}"
        return
    if rank >= world:
        yield f"RANK = {rank}: must be below WORLD_SIZE = {world}; {_BY_LAUNCHER.format(unset='RANK')}"
    if numbers.get("LOCAL_RANK", 0) > rank:
        local = numbers["LOCAL_RANK"]
        yield f"LOCAL_RANK = {local}: cannot be above RANK = {rank}; {_BY_LAUNCHER.format(unset='LOCAL_RANK')}"
    if world == 1:
        return
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        if not environ.get(name):
            yield f"{name}: is not set, and WORLD_SIZE = {world}; {_BY_LAUNCHER.format(unset='WORLD_SIZE')}"
    port = environ.get("MASTER_PORT", "")
    if port and not (port.isdecimal() and 0 < int(port) <= _LARGEST_PORT):
        yield f"MASTER_PORT = {port!r}: must be a number from 1 to {_LARGEST_PORT}; give a free port of that machine"


def environment_problems(config: RunConfig, environ: Mapping[str, str] = os.environ) -> Iterator[str]:
    """Variables that would be passed over in silence, or that contradict the configuration."""
    devices, threads = environ.get("CUDA_VISIBLE_DEVICES", ""), environ.get("OMP_NUM_THREADS", "")
    if not _DEVICES.fullmatch(devices.replace(" ", "")):
        yield (
            f"CUDA_VISIBLE_DEVICES = {devices!r}: must be numbers or identifiers of GPUs, such as 0,1; "
            "correct it, or unset it to use all"
        )
    if threads and not _THREADS.fullmatch(threads.replace(" ", "")):
        yield f"OMP_NUM_THREADS = {threads!r}: must be a number of threads >= 1; correct it, or unset it"
    precision, own = environ.get("ACCELERATE_MIXED_PRECISION", "no"), config.training.mixed_precision
    if precision not in _PRECISIONS:
        close = nearest(precision, _PRECISIONS)
        hint = f"; did you mean {close!r}?" if close is not None else ""
        yield f"ACCELERATE_MIXED_PRECISION = {precision!r}: must be one of {', '.join(_PRECISIONS)}{hint}"
    elif precision not in ("no", own):  # what a launcher that was told nothing says is no
        yield (
            f"training.mixed_precision = {own}: the launcher was told --mixed_precision {precision}; "
            f"use training.mixed_precision={precision}, or launch without it"
        )


def cache_problems(hub_id: str, environ: Mapping[str, str] = os.environ) -> Iterator[str]:
    """Why a model of the hub can be neither found nor downloaded; empty where it may."""
    cache = hub_cache(environ)
    if (cache / f"models--{hub_id.replace('/', '--')}").is_dir():
        return
    if environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        yield f"{hub_id} is not in {cache}, and HF_HUB_OFFLINE forbids downloading; unset it, or copy the model there"
    elif not writable(cache):
        yield f"{hub_id} cannot be downloaded to {cache}, which is not writable; set HF_HOME to a folder that is"


def hub_cache(environ: Mapping[str, str] = os.environ) -> Path:
    """Where the model hub's files are kept, as huggingface_hub decides it."""
    general = environ.get("HF_HOME") or str(Path(environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
    return user_path(environ.get("HF_HUB_CACHE") or str(Path(general) / "hub"))


def writable(folder: Path) -> bool:
    """Whether ``folder`` can be written, or made."""
    existing = next(parent for parent in (folder, *folder.absolute().parents) if os.path.lexists(parent))
    return existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
