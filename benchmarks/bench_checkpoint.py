"""What a checkpoint costs, as a share of the rollout and update before it, and against ``torch.save`` of the same.

The shipped configuration on the shipped tiny model: adapters, their moments and their average are written aside,
synced, hashed and renamed, and the checkpoint before the last is removed. The aim is 3 % of an epoch when one is
written after every epoch; the configuration writes one every 20. The naive side is what scripts do: pickle the same
tensors into one file under its final name, neither synced nor hashed. Wall seconds, since a checkpoint waits for the
disk.

    python -m benchmarks.bench_checkpoint
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks import recorder, sd3_models
from benchmarks.timing import alternate, fastest
from difalign.build.definitions import find_definition
from difalign.build.preflight import prepare
from difalign.build.run import build_task
from difalign.core.overrides import load_config
from difalign.train.checkpoint import list_checkpoints, save_checkpoint
from difalign.train.policy_gradient import PolicyGradient
from difalign.train.runtime import Runtime

TARGET = 0.03


def prepare_trainer(config_name: str, runtime: Runtime) -> PolicyGradient:
    """The trainer of a shipped configuration, as ``train_flow_grpo.py`` builds it."""
    sd3_models.quiet_libraries()
    config = load_config(find_definition("configs", config_name), [])
    task = build_task(prepare(config, check_output=False), runtime)
    return PolicyGradient(task.pipeline, task.reward, task.prompts, plans=task.plans, config=config, runtime=runtime)


def measure(trainer: PolicyGradient, folder: Path, *, rounds: int) -> dict[str, object]:
    """Wall seconds of an epoch, of our checkpoint and of the naive one, fastest round, and what lies on the disk."""
    rollouts, saves = itertools.count(), itertools.count()
    naive = folder / "naive.pt"

    def ours() -> None:
        save_checkpoint(folder, next(saves), trainer.state().files(), keep=2)

    def pickled() -> None:
        state = trainer.state()
        torch.save({"weights": state.weights, "optimizer": state.optimizer, "average": state.average}, naive)

    sides: dict[str, Callable[[], object]] = {
        "epoch": lambda: trainer.run(next(rollouts), lambda _phase, _done, _total: None),
        "checkpoint": ours,
        "torch_save": pickled,
    }
    seconds = fastest(alternate(sides, rounds=rounds, clock=time.perf_counter))
    newest = list_checkpoints(folder)[-1].folder
    return {
        "share_of_epoch": seconds["checkpoint"] / seconds["epoch"],
        "target": TARGET,
        "ratio_to_torch_save": seconds["checkpoint"] / seconds["torch_save"],
        "wall_seconds": seconds,
        "megabytes": sum(file.stat().st_size for file in newest.iterdir()) / 1e6,
        "naive_megabytes": naive.stat().st_size / 1e6,
    }


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = recorder.command_line(__doc__, rounds=5)
    parser.add_argument("--config", default="flow_grpo_tiny_sd3", help="a shipped configuration or a YAML file")
    return recorder.parse(parser, arguments)


def main(arguments: Sequence[str]) -> None:
    """Measure and print one JSON line."""
    options = parse(arguments)
    runtime = Runtime()
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:  # on a real disk; /tmp may be memory
        figures = measure(prepare_trainer(options.config, runtime), Path(folder), rounds=options.rounds)
    recorder.record("checkpoint", arguments, options=options, results=figures)
    runtime.close()


if __name__ == "__main__":
    main(sys.argv[1:])
