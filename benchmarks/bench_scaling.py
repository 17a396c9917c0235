"""Two processes against one: wall seconds of one rollout with its updates, at the same global batch, one thread each.

Whole runs through ``accelerate launch`` with the shipped files, in turns. What starts a run up is left out: the clock
of a run's metrics counts from its first rollout, which is left out as well. Two processes on two idle cores could halve
the time at best; prompts that do not divide evenly, and work that only the first process does, take from that. Beside
the time stands how far the runs are apart: the same samples are scored, so rewards agree, and weights up to rounding.

    python -m benchmarks.bench_scaling --rounds 3
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from benchmarks import recorder

TARGET = 0.65  # of the time of one process
_ROOT = Path(__file__).resolve().parents[1]
_WEIGHTS = "pytorch_lora_weights.safetensors"


@dataclass(frozen=True, slots=True)
class Finished:
    """What is read from the folder of a run."""

    seconds: float  # a rollout, without the first
    rewards: tuple[float, ...]  # one an update
    weights: dict[str, Tensor]


def command(processes: int, options: argparse.Namespace, folder: Path) -> list[str]:
    """How a run on so many processes is started."""
    accelerate = _ROOT / "configs" / "accelerate" / ("single.yaml" if processes == 1 else "ddp.yaml")
    launch = ["--config_file", str(accelerate), "--num_processes", str(processes), "--num_cpu_threads_per_process"]
    settings = {
        "output_dir": str(folder),
        "sampling.prompts_per_update": options.prompts,
        "sampling.samples_per_prompt": options.samples,
        "training.rollouts": options.rollouts,
        "training.checkpoint.every": 0,
        "evaluation.limit": options.heldout,
        "evaluation.every": 0,
    }
    return [
        *(sys.executable, "-m", "accelerate.commands.launch", *launch, str(options.threads)),
        *(str(_ROOT / "train_flow_grpo.py"), "--config", options.config),
        *(f"{key}={value}" for key, value in settings.items()),
    ]


def train(processes: int, options: argparse.Namespace) -> Finished:
    """One run from start to end.

    Raises:
        RuntimeError: if it fails, with what it wrote.
    """
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": str(options.threads)}
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "run"
        started = command(processes, options, folder)
        done = subprocess.run(started, env=environment, cwd=_ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"the run on {processes} processes failed:\n{done.stderr[-3000:]}")
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        rewards = tuple(row["reward"] for row in rows)
        return Finished(seconds_a_rollout(rows), rewards, load_file(folder / _WEIGHTS))


def seconds_a_rollout(rows: Sequence[dict[str, Any]]) -> float:
    """Wall seconds from the end of the first rollout to that of the last, for each between.

    Raises:
        ValueError: if there are fewer than two rollouts.
    """
    ends = {int(row["rollout"]): float(row["seconds"]) for row in rows}
    if len(ends) < 2:
        raise ValueError(f"{len(ends)} rollouts leave nothing to time; use --rollouts 2 or more")
    return (ends[max(ends)] - ends[min(ends)]) / (max(ends) - min(ends))


def compare(one: Sequence[Finished], two: Sequence[Finished]) -> dict[str, Any]:
    """The fastest round of both sides, and how far what they learnt is apart."""
    alone, together = (min(run.seconds for run in of_one) for of_one in (one, two))
    rewards = zip(one[0].rewards, two[0].rewards, strict=True)
    weights = two[0].weights
    return {
        "ratio": together / alone,
        "target": TARGET,
        "speedup": alone / together,
        "seconds_a_rollout": {"one": alone, "two": together},
        "all_seconds": {"one": [run.seconds for run in one], "two": [run.seconds for run in two]},
        "max_reward_difference": max(abs(a - b) for a, b in rewards),
        "max_weight_difference": max(
            float((value - weights[name]).abs().max()) for name, value in one[0].weights.items()
        ),
    }


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = recorder.command_line(__doc__, rounds=3)
    parser.add_argument("--config", default="flow_grpo_tiny_sd3", help="a shipped configuration or a YAML file")
    parser.add_argument("--prompts", type=int, default=10, help="an update, over all processes")
    parser.add_argument("--samples", type=int, default=12, help="a prompt")
    parser.add_argument("--rollouts", type=int, default=6, help="a run; the first is not timed")
    parser.add_argument("--heldout", type=int, default=2, help="prompts evaluated before and after, which is not timed")
    return recorder.parse(parser, arguments)


def main(arguments: Sequence[str]) -> None:
    """Measure and print one JSON line."""
    options = parse(arguments)
    one: list[Finished] = []
    two: list[Finished] = []
    for _ in range(options.rounds):
        one.append(train(1, options))
        two.append(train(2, options))
    recorder.record("scaling", arguments, options=options, results={"cores": os.cpu_count(), **compare(one, two)})


if __name__ == "__main__":
    main(sys.argv[1:])
