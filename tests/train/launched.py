"""Starting several processes of one run on this machine, as a launcher does, and what they say."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.house.repository import ROOT

TRAIN = str(ROOT / "train_flow_grpo.py")
# What `accelerate launch --config_file configs/accelerate/fsdp2.yaml` puts into the environment.
SHARDED = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "true"}


def free_port() -> int:
    """A port that nobody listens on at the moment."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def cpu_environment() -> dict[str, str]:
    """The environment of a process that computes on the CPU with one thread."""
    ours = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONFAULTHANDLER": "1"}
    return {**os.environ, **ours}


def start(
    world: int, arguments: Sequence[str], *, logs: Path, more: Mapping[str, str] | None = None
) -> list[subprocess.Popen[bytes]]:
    """Start ``python ARGUMENTS`` as ``world`` processes; each writes both of its streams to ``logs/RANK.log``."""
    logs.mkdir(parents=True, exist_ok=True)
    common = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), **(more or {})}
    processes = []
    for rank in range(world):
        with (logs / f"{rank}.log").open("wb") as log:
            processes.append(
                subprocess.Popen(
                    [sys.executable, *arguments],
                    cwd=ROOT,
                    env={**cpu_environment(), **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )
    return processes


def finish(processes: Sequence[subprocess.Popen[bytes]], *, seconds: float = 300) -> list[int]:
    """The exit codes in order of rank; whoever still runs after ``seconds`` is killed."""
    try:
        return [process.wait(timeout=seconds) for process in processes]
    finally:
        end(processes)


def end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Kill whoever still runs."""
    for process in processes:
        process.kill()
        process.wait()


def launch(world: int, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """``python ARGUMENTS`` as ``world`` processes of torch's launcher, which holds their store and outlives them."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)]
    return subprocess.run(
        [sys.executable, *launcher, *arguments],
        cwd=ROOT,
        env=cpu_environment(),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def run(
    world: int, arguments: Sequence[str], *, logs: Path, more: Mapping[str, str] | None = None, seconds: float = 300
) -> list[int]:
    """``start`` and ``finish``."""
    return finish(start(world, arguments, logs=logs, more=more), seconds=seconds)


def said(logs: Path) -> list[str]:
    """What each process wrote, in order of rank."""
    return [path.read_text() for path in sorted(logs.glob("*.log"))]
