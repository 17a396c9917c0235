"""How long it takes until the command answers: ``difalign --help`` and ``import difalign`` in fresh processes.

Beside them an empty interpreter and ``import torch``, which every part of the library that computes needs and these
two must not wait for. Wall seconds of a whole process, median and best of alternating rounds, and the processor
seconds of the best, which a busy machine stretches less. The aims are 0.5 and 0.3 seconds.

    python -m benchmarks.bench_startup --rounds 9
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import recorder

TARGETS = {"difalign --help": 0.5, "import difalign": 0.3}  # seconds
_WITHOUT_SCRIPT = "import sys; sys.argv[0] = 'difalign'; from difalign.cli.app import main; main()"


@dataclass(frozen=True, slots=True)
class Run:
    """One process from start to end."""

    wall: float  # seconds
    cpu: float  # seconds


def commands() -> dict[str, list[str]]:
    """What is started, by the name it is reported under."""
    script = Path(sys.executable).with_name("difalign")  # the console script of this environment
    program = [str(script)] if script.is_file() else [sys.executable, "-c", _WITHOUT_SCRIPT]
    return {
        "difalign --help": [*program, "--help"],
        "import difalign": [sys.executable, "-c", "import difalign"],
        "python -c pass": [sys.executable, "-c", "pass"],
        "import torch": [sys.executable, "-c", "import torch"],
    }


def start(command: Sequence[str]) -> Run:
    """Run a command to its end.

    Raises:
        subprocess.CalledProcessError: if it fails.
    """
    before, begin = os.times(), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    wall, after = time.perf_counter() - begin, os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return Run(wall=wall, cpu=cpu)


def measure(started: Mapping[str, Sequence[str]], *, rounds: int) -> dict[str, dict[str, float]]:
    """Seconds of every command; each runs once beforehand, so that its files are in memory."""
    for command in started.values():
        start(command)
    runs: dict[str, list[Run]] = {name: [] for name in started}
    for _ in range(rounds):
        for name, command in started.items():
            runs[name].append(start(command))
    return {name: _summary(of_one, target=TARGETS.get(name)) for name, of_one in runs.items()}


def _summary(runs: Sequence[Run], *, target: float | None) -> dict[str, float]:
    figures = {
        "median_seconds": statistics.median(run.wall for run in runs),
        "best_seconds": min(run.wall for run in runs),
        "best_cpu_seconds": min(run.cpu for run in runs),
    }
    return figures if target is None else figures | {"target_seconds": target}


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    return recorder.parse(recorder.command_line(__doc__, rounds=7), arguments)


def main(arguments: Sequence[str]) -> None:
    """Measure and print one JSON line."""
    options = parse(arguments)
    recorder.record("startup", arguments, options=options, results=measure(commands(), rounds=options.rounds))


if __name__ == "__main__":
    main(sys.argv[1:])
