"""What is wrong with an installation or a machine, each finding with its remedy."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from difalign.build.definitions import find_shipped
from difalign.build.requirements import (
    Library,
    installed_version,
    matching_torchvision,
    supported_libraries,
    torchvision_mismatch,
)
from difalign.build.surroundings import hub_cache, writable

Level = Literal["ok", "note", "problem"]
Probe = Callable[[Sequence[str]], Mapping[str, str]]  # modules -> those that do not import, with the last line said

_OLDEST_PYTHON = (3, 11)
_NEEDED_IMPORTS = {"torch": "torch", "diffusers": "diffusers", "transformers": "transformers", "peft": "peft"}
_NEEDED_IMPORTS |= {"accelerate": "accelerate", "safetensors": "safetensors", "numpy": "numpy", "scipy": "scipy"}
_OPTIONAL_IMPORTS = {"torchvision": "torchvision", "xformers": "xformers.ops", "open_clip_torch": "open_clip"}
_QUIET_EXTRAS = ("dev", "docs")  # of no concern to a run
_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "DIFFUSERS_OFFLINE")
_PROBE_SECONDS = 300.0
_SMALL_DISK = 2e9  # bytes; a checkpoint or a download soon needs more
_SMALL_MEMORY = 2e9

# Imports each module by itself, so that one broken library does not hide the next, and calls what a mismatched
# torchvision lacks: its operators are registered when it is loaded.
_PROBE_CODE = """
import importlib, json, sys
broken = {}
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
        if name == "torchvision":
            import torch
            torch.ops.torchvision.nms
    except BaseException as error:
        broken[name] = (f"{type(error).__name__}: {error}".strip().splitlines() or [""])[0]
sys.stdout.write("\\n" + json.dumps(broken))
"""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    subject: str
    level: Level
    found: str
    remedy: str = ""


def examine(*, probe: Probe | None = None, libraries: Sequence[Library] | None = None) -> tuple[Finding, ...]:
    """Everything a run needs, in the order in which to put it right.

    Args:
        probe: tries imports; in a process of their own by default, since a broken library may take it down.
        libraries: declared ones with what is installed; read from the project by default.
    """
    libraries = supported_libraries() if libraries is None else libraries
    broken = (probe_imports if probe is None else probe)(_modules(libraries))
    return (
        python_finding(),
        *library_findings(libraries, broken),
        torchvision_finding(installed_version("torch"), installed_version("torchvision"), broken),
        *device_findings(broken),
        *_machine_findings(),
        *_surroundings(),
    )


def probe_imports(modules: Sequence[str]) -> Mapping[str, str]:
    """Import modules in a process of their own; those that fail, each with the first line of its error."""
    command = [sys.executable, "-c", _PROBE_CODE, *modules]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PROBE_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return dict.fromkeys(modules, f"did not finish within {_PROBE_SECONDS:.0f} seconds")
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        if len(modules) == 1:
            return {modules[0]: f"took the interpreter down (exit {done.returncode}): {said}"}
        return {name: said for module in modules for name, said in probe_imports([module]).items()}
    return json.loads(done.stdout.splitlines()[-1])


def python_finding(version: tuple[int, ...] = sys.version_info[:3]) -> Finding:
    """Whether the interpreter is new enough."""
    found = f"{'.'.join(map(str, version))} at {sys.prefix}"
    if tuple(version[:2]) >= _OLDEST_PYTHON:
        return Finding("python", "ok", found)
    oldest = ".".join(map(str, _OLDEST_PYTHON))
    return Finding("python", "problem", found, f"make an environment with Python {oldest} or newer")


def library_findings(libraries: Sequence[Library], broken: Mapping[str, str]) -> Iterator[Finding]:
    """One finding a library: installed, in the supported range, and importable."""
    for library in libraries:
        if library.extra in _QUIET_EXTRAS or library.name == "torchvision":  # which has a finding of its own
            continue
        module = {**_NEEDED_IMPORTS, **_OPTIONAL_IMPORTS}.get(library.name)
        yield _library_finding(library, broken.get(module) if module is not None else None)


def torchvision_finding(torch: str | None, torchvision: str | None, broken: Mapping[str, str]) -> Finding:
    """Whether torchvision, which open_clip needs and transformers loads where it is, belongs to torch."""
    if torchvision is None or torch is None:
        return Finding("torchvision", "ok", "not installed; only rewards that read open_clip need it")
    mismatch = torchvision_mismatch(torch, torchvision)
    error = broken.get("torchvision")
    if mismatch is None and error is None:
        return Finding("torchvision", "ok", f"{torchvision}, fits torch {torch}")
    match = matching_torchvision(torch)
    pair = f"pip install '{match}'" if match is not None else "install the one made for this torch"
    found = "; ".join(text for text in (mismatch, error) if text)
    return Finding(
        "torchvision", "problem", found, f"{pair}, or pip uninstall torchvision, which only rewards by open_clip need"
    )


def device_findings(broken: Mapping[str, str]) -> Iterator[Finding]:
    """The devices torch sees and their memory; a GPU that torch cannot use is a problem."""
    if "torch" in broken:
        return
    import torch

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            bf16 = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no bf16"
            name = torch.cuda.get_device_name(index)
            yield Finding(f"cuda:{index}", "ok", f"{name}, {_size(free)} of {_size(total)} free, {bf16}")
    elif torch.backends.mps.is_available():
        yield Finding("device", "ok", "Apple MPS")
    elif Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None:
        built = f"torch {torch.__version__} is built for CUDA {torch.version.cuda}"
        if torch.version.cuda is None:
            built = f"torch {torch.__version__} is built without CUDA"
        yield Finding(
            "device",
            "problem",
            f"an NVIDIA driver is installed, but torch sees no GPU; {built}",
            "install a torch built for the CUDA version that nvidia-smi shows, and see CUDA_VISIBLE_DEVICES",
        )
    else:
        yield Finding("device", "note", "CPU only", "enough for the shipped tiny models; large ones need a GPU")


def threads_finding(threads: int, cpus: int) -> Finding:
    """Whether the threads of a process fit on the machine."""
    found = f"{cpus} usable, {threads} threads a process"
    if threads > cpus:
        return Finding("cpu", "note", found, f"more threads than processors are slow; set OMP_NUM_THREADS={cpus}")
    return Finding("cpu", "ok", found)


def space_finding(subject: str, folder: Path) -> Finding:
    """Free space where ``folder`` is or would be."""
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < _SMALL_DISK:
        return Finding(subject, "problem", f"{_size(free)} free at {existing}", "make room, or use another disk")
    return Finding(subject, "ok", f"{_size(free)} free at {existing}")


def cache_finding(folder: Path) -> Finding:
    """Whether models can be downloaded into the hub's cache."""
    if writable(folder):
        return Finding("hub cache", "ok", str(folder))
    return Finding(
        "hub cache", "problem", f"{folder} is not writable", "set HF_HOME to a folder that is, or change permissions"
    )


def _modules(libraries: Sequence[Library]) -> list[str]:
    """What to import: everything needed, torchvision and friends where they are installed."""
    needed = [_NEEDED_IMPORTS[library.name] for library in libraries if library.name in _NEEDED_IMPORTS]
    installed = [module for name, module in _OPTIONAL_IMPORTS.items() if installed_version(name) is not None]
    return [*needed, *installed]


def _library_finding(library: Library, error: str | None) -> Finding:
    needed, name = library.extra is None, library.name
    level: Level = "problem" if needed else "note"
    wanted = f"'{name}{library.supported}'"
    if library.installed is None:
        remedy = f"pip install {wanted}" if needed else f"optional; pip install 'difalign[{library.extra}]'"
        return Finding(name, level, "not installed", remedy)
    if not library.fits:
        return Finding(name, level, f"{library.installed}, supported: {library.supported}", f"pip install {wanted}")
    if error is not None:
        remedy = f"pip install --force-reinstall {wanted}; read the error for what it lacks"
        return Finding(name, level, f"{library.installed} does not import: {error}", remedy)
    return Finding(name, "ok", f"{library.installed} ({library.supported or 'any'})")


def _machine_findings() -> Iterator[Finding]:
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = os.environ.get("OMP_NUM_THREADS", "")
    yield Finding("platform", "ok", f"{platform.system()} {platform.machine()}")
    yield threads_finding(int(threads) if threads.isdecimal() else cpus, cpus)
    memory = _memory()
    if memory is not None:
        free, total = memory
        level: Level = "ok" if free >= _SMALL_MEMORY else "note"
        remedy = "" if level == "ok" else "end other programs; lower micro_batch"
        yield Finding("memory", level, f"{_size(free)} of {_size(total)} free", remedy)
    yield space_finding("disk", Path.cwd())


def _surroundings() -> Iterator[Finding]:
    yield cache_finding(hub_cache())
    yield space_finding("hub cache's disk", hub_cache())
    flags = [f"{name}={os.environ[name]}" for name in _OFFLINE if os.environ.get(name)]
    if flags:
        yield Finding("offline", "note", ", ".join(flags), "only local files and the cache are used; unset to download")
    else:
        yield Finding("offline", "ok", "no flag is set; models may be downloaded")
    shipped = find_shipped("pipelines/tiny-sd3/model_index.json")
    if shipped is None:
        yield Finding("shipped models", "problem", "pipelines/tiny-sd3 is missing", "reinstall difalign")
    else:
        yield Finding("shipped models", "ok", str(shipped.parent))


def _memory() -> tuple[float, float] | None:
    """(free, total) bytes of main memory where the system tells."""
    listing = Path("/proc/meminfo")
    if not listing.is_file():
        return None
    sizes = {line.partition(":")[0]: line.split()[1] for line in listing.read_text(encoding="utf-8").splitlines()}
    if not {"MemAvailable", "MemTotal"} <= sizes.keys():
        return None
    return float(sizes["MemAvailable"]) * 1024, float(sizes["MemTotal"]) * 1024


def _size(size: float) -> str:
    return f"{size / 1e9:,.1f} GB"
