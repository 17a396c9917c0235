"""The command line that every benchmark has, and the JSON line that a figure comes with.

A line holds the figures, the exact command with all its options, the UTC date, the number of threads, and on what it
was measured; no folder and no name of the machine.
"""

from __future__ import annotations

import json
import math
import shlex
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import difalign
from difalign.report.environment import describe_environment, portable_argument

PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "peft", "numpy", "scipy")
_DIGITS = 4  # significant ones; timings are not better than that


def command_line(description: str | None, *, rounds: int) -> ArgumentParser:
    """A parser with the options that all benchmarks share; a benchmark adds its own.

    Args:
        description: the benchmark's docstring.
        rounds: the default number of timed rounds.
    """
    parser = ArgumentParser(description=description, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds, help=f"timed rounds a side (default {rounds})")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default 1)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="append the JSON line to this file as well")
    return parser


def parse(parser: ArgumentParser, arguments: Sequence[str]) -> Namespace:
    """The options; sets the number of threads of this process.

    Raises:
        SystemExit: with a message, if the command line is wrong.
    """
    options = parser.parse_args(arguments)
    for name in ("rounds", "threads"):
        if (value := getattr(options, name)) < 1:
            parser.error(f"--{name} is {value}; give at least 1")
    torch.set_num_threads(options.threads)
    return options


def record(
    benchmark: str, arguments: Sequence[str], *, options: Namespace, results: Mapping[str, Any]
) -> dict[str, Any]:
    """Print the JSON line of a benchmark, append it to ``options.output`` if that is given, and return its content.

    Args:
        benchmark: the name of the script without ``bench_``.
        arguments: its command line, without the program.
        options: from ``parse``; all of them are noted, defaults too.
        results: the figures: numbers, texts, and lists and mappings of them; rounded to four significant digits.
    """
    entry = {
        "benchmark": benchmark,
        "command": shlex.join(["python", "-m", f"benchmarks.bench_{benchmark}", *map(portable_argument, arguments)]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "options": {name: _portable(value) for name, value in vars(options).items() if name != "output"},
        "results": _rounded(results),
        "threads": torch.get_num_threads(),
        "environment": environment(),
    }
    line = json.dumps(entry)
    print(line)
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        with options.output.open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")
    return entry


def environment() -> dict[str, Any]:
    """Machine and versions as a run notes them; the command stands beside it."""
    described = describe_environment(arguments=(), packages=PACKAGES)
    kept = {name: value for name, value in described.items() if name not in {"command", "processes"}}
    return kept | {"packages": {"difalign": difalign.__version__, **described["packages"]}}


def _portable(value: object) -> object:
    """An option without the folders of one machine."""
    return portable_argument(str(value)) if isinstance(value, str | Path) else value


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _rounded(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(inner) for inner in value]
    if isinstance(value, float):
        assert math.isfinite(value), "a figure is a finite number"
        return float(f"{value:.{_DIGITS}g}")
    return value
