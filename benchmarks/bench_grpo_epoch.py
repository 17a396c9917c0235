"""One Flow-GRPO epoch, rollout and update, against a loop with the structure of the published scripts.

Both sides work on the shipped tiny model with LoRA and the verifier as reward: the same weights, prompts, noise, number
of samples, steps, trained steps and loss. Ours is the trainer as ``train_flow_grpo.py`` runs it, with the shipped
configuration and an empty prompt cache; ``published_loop`` describes the other side. Zero-variance filtering, which
would spare both sides the same rows, is off.

``ratio`` compares with the loop at its published batch of 9 rows; the aim is 0.6. ``ratio_same_batch`` gives the loop
our micro-batch as well, to show how much of the difference is the size of the batch: the scripts tie it to the
geometry of their groups, here it only says how much memory a forward may take.

That both do the same is checked first: the largest difference of the images, of the gradient (relative to its largest
element) and of the weights after the update (in learning rates; Adam's first step turns the sign of any gradient into
a whole one, so rounding can show there). Times are processor seconds of the fastest of alternating rounds.

    python -m benchmarks.bench_grpo_epoch --prompts 9 --samples 12 --loop-batch 9
    python -m benchmarks.bench_grpo_epoch --guidance 4
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial

from benchmarks import epochs, recorder
from benchmarks.epochs import Epoch, Run
from benchmarks.published_loop import Noise, PublishedLoop
from benchmarks.timing import PhaseClock

TARGET = 0.6


def loop(epoch: Epoch, batch: int) -> Run:
    """The yardstick with ``batch`` rows a forward."""
    prompts, seeds = epoch.rows()
    steps = epoch.noise(seeds, range(epoch.config.sampling.steps), children=1)
    noise = Noise(epoch.start(seeds), steps.squeeze(2))
    looped, optimizer = PublishedLoop(epoch.parts(batch)), epoch.optimizer()

    def run(clock: PhaseClock) -> None:
        looped.run(prompts, noise, parameters=epoch.parameters, optimizer=optimizer, mark=clock.mark)

    return run


def measure(epoch: Epoch, *, loop_batch: int, rounds: int) -> dict[str, object]:
    """How far the sides differ, and the fastest epoch of each, phase by phase."""
    sampling = epoch.config.sampling
    micro_batch = min(sampling.micro_batch, sampling.prompts_per_update * sampling.samples_per_prompt)
    sides: dict[str, Callable[[], Run]] = {
        "ours": partial(epochs.ours, epoch),
        "loop": partial(loop, epoch, loop_batch),
        "loop_same_batch": partial(loop, epoch, micro_batch),
    }
    outcomes = {name: epoch.outcome(make) for name, make in sides.items()}
    best = epochs.fastest_epochs(epoch, sides, rounds=rounds)
    settings = epoch.parts(loop_batch).settings
    rate = epoch.config.training.learning_rate
    return {
        **epochs.compared(best, target=TARGET),
        "rows_a_forward": {"ours": micro_batch, "loop": loop_batch, "loop_same_batch": micro_batch},
        "samples": outcomes["ours"].images.shape[0],
        "steps": settings.steps,
        "trained_steps": len(settings.trained),
        "guidance": settings.guidance,
        **epochs.differences(outcomes["ours"], outcomes["loop"], learning_rate=rate),
    }


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = epochs.command_line(__doc__, config="flow_grpo_tiny_sd3", rounds=3)
    parser.add_argument("--prompts", type=int, default=9)
    parser.add_argument("--samples", type=int, default=12, help="a prompt")
    parser.add_argument(
        "--loop-batch", type=int, default=9, help="rows a forward of the loop; 9 is published for SD3.5"
    )
    return recorder.parse(parser, arguments)


def main(arguments: Sequence[str]) -> None:
    """Measure and print one JSON line."""
    options = parse(arguments)
    geometry = [
        f"sampling.prompts_per_update={options.prompts}",
        f"sampling.samples_per_prompt={options.samples}",
    ]
    epoch = epochs.prepare_epoch(options.config, [*geometry, *epochs.overrides_of(options)])
    figures = measure(epoch, loop_batch=options.loop_batch, rounds=options.rounds)
    recorder.record("grpo_epoch", arguments, options=options, results=figures)
    epoch.runtime.close()


if __name__ == "__main__":
    main(sys.argv[1:])
