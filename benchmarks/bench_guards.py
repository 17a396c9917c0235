"""What the guards cost: one Flow-GRPO epoch, rollout and update, with them and without.

Both sides are the trainer on the shipped tiny model with LoRA and the verifier as reward; they start every round from
the same weights, and must end it with the same ones to the last bit: guards look and do not touch. With guards, the
weights are fingerprinted at every switch between sampling and updating, the gradient is looked at after every
micro-batch, the distance between samples is measured, and the figures are watched for drift.

``overhead`` is what the guards add to an epoch; the aim is 0.02. Beside it stands what is paid only when weights are
saved, once a run and at every new best: reading them back through diffusers and comparing pictures, in seconds and in
epochs. Times are processor seconds of the fastest of alternating rounds.

    python -m benchmarks.bench_guards --prompts 9 --samples 12
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import recorder, sd3_models
from benchmarks.timing import alternate, fastest
from difalign.build.definitions import find_definition
from difalign.build.preflight import prepare
from difalign.build.run import build_task
from difalign.core.config import RunConfig
from difalign.core.overrides import load_config
from difalign.train.drift import DriftWatch
from difalign.train.export import check_export
from difalign.train.policy_gradient import PolicyGradient
from difalign.train.run import Task
from difalign.train.runtime import Runtime

TARGET = 0.02


@dataclass
class Sides:
    """The same epoch under two configurations, over one set of modules."""

    with_guards: RunConfig
    without: RunConfig
    task: Task
    runtime: Runtime
    initial: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        parameters = self.task.pipeline.tuning.trainable_parameters()
        self.initial = [parameter.detach().clone() for parameter in parameters]

    def epoch(self, config: RunConfig) -> Tensor:
        """One rollout and its updates from the initial weights; returns the new ones as one vector."""
        parameters = self.task.pipeline.tuning.trainable_parameters()
        with torch.no_grad():
            for parameter, value in zip(parameters, self.initial, strict=True):
                parameter.copy_(value)
        trainer = PolicyGradient(
            self.task.pipeline,
            self.task.reward,
            self.task.prompts,
            plans=self.task.plans,
            config=config,
            runtime=self.runtime,
        )
        watch = DriftWatch(config, trainer.alarms)
        for row in trainer.run(0, lambda _phase, _done, _total: None):
            watch.row(row)
        assert not trainer.alarms.given, trainer.alarms.given
        return torch.cat([parameter.detach().flatten() for parameter in parameters])

    def read_back(self) -> None:
        """Save the adapters, read them through diffusers, and compare pictures."""
        texts = [prompt.text for prompt in self.task.heldout]
        with tempfile.TemporaryDirectory() as folder:
            self.task.pipeline.tuning.save_lora(folder)
            alarm = check_export(self.task.pipeline, Path(folder), texts, self.with_guards, done=1, update=1)
        assert alarm is None, alarm


def prepare_sides(options: argparse.Namespace) -> Sides:
    """Both sides for a command line."""
    sd3_models.quiet_libraries()
    settings = [
        f"sampling.prompts_per_update={options.prompts}",
        f"sampling.samples_per_prompt={options.samples}",
        "training.updates_per_rollout=1",
    ]
    file = find_definition("configs", options.config)
    with_guards, without = (load_config(file, [*settings, f"guards.enabled={on}"]) for on in ("true", "false"))
    runtime = Runtime(mixed_precision=with_guards.training.mixed_precision)
    return Sides(with_guards, without, build_task(prepare(with_guards, check_output=False), runtime), runtime)


def measure(sides: Sides, *, rounds: int) -> dict[str, object]:
    """The fastest epoch of each side, and what lies between them."""
    ends = [sides.epoch(config) for config in (sides.with_guards, sides.without)]  # also the warm-up
    assert torch.equal(*ends)
    sides.read_back()
    timed: dict[str, Callable[[], object]] = {
        "with_guards": partial(sides.epoch, sides.with_guards),
        "without": partial(sides.epoch, sides.without),
        "read_back": sides.read_back,
    }
    seconds = fastest(alternate(timed, rounds=rounds))
    return {
        "overhead": seconds["with_guards"] / seconds["without"] - 1.0,
        "target": TARGET,
        "read_back_in_epochs": seconds["read_back"] / seconds["without"],
        "cpu_seconds": seconds,
        "trained_weights": int(ends[0].numel()),
        "samples": sides.with_guards.prompts_per_rollout * sides.with_guards.sampling.samples_per_prompt,
    }


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = recorder.command_line(__doc__, rounds=5)
    parser.add_argument("--config", default="flow_grpo_tiny_sd3", help="a shipped configuration or a YAML file")
    parser.add_argument("--prompts", type=int, default=9)
    parser.add_argument("--samples", type=int, default=12, help="a prompt")
    return recorder.parse(parser, arguments)


def main(arguments: Sequence[str]) -> None:
    """Measure and print one JSON line."""
    options = parse(arguments)
    sides = prepare_sides(options)
    recorder.record("guards", arguments, options=options, results=measure(sides, rounds=options.rounds))
    sides.runtime.close()


if __name__ == "__main__":
    main(sys.argv[1:])
