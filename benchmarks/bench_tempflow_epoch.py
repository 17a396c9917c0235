"""One TempFlow-GRPO epoch, rollout and update, against a loop with the structure of the published per-step script.

Both sides work on the shipped tiny model with LoRA and the verifier as reward: the same weights, prompts, start noises,
noise of the children, branch steps, advantages per start noise and branch step, noise-aware weights and Gaussian KL to
the untrained policy. Ours is the trainer with a branch plan; ``published_branches`` describes the other side, which
shares the trunk too, so both evaluate the same rows.

``ratio`` compares with the loop at its published batch of one start noise a forward on the trunk, and its K children on
the tails and in training; the aim is 0.5. ``ratio_same_batch`` gives the loop as many start noises as our micro-batch
holds children, to show how much of the difference is the size of the batch. That all do the same is checked first, as
``bench_grpo_epoch`` does. Times are processor seconds of the fastest of alternating rounds.

    python -m benchmarks.bench_tempflow_epoch --steps 10 --prompts 2 --seeds 4 --children 6
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from benchmarks import epochs, recorder
from benchmarks.epochs import Epoch, Run
from benchmarks.published_branches import BranchNoise, PublishedBranches
from benchmarks.timing import PhaseClock
from difalign.rollout.trie import count_edges, count_forwards

TARGET = 0.5
METHOD = (  # arXiv 2508.04324, released SD3 configuration
    "sampling.plan.kind=branch",
    "sampling.plan.mode=all",
    "objective.timestep_fraction=0.99",
    "objective.advantage.group_by=seed",
    "objective.weight=noise_aware",
    "objective.kl.kind=gaussian",
    "objective.kl.beta=0.004",
    "training.detach_uncond=false",
)


def loop(epoch: Epoch, start_noises: int) -> Run:
    """The yardstick with ``start_noises`` of them a forward on the trunk."""
    prompts, seeds = epoch.rows()
    branches = PublishedBranches(epoch.parts(start_noises, noise_aware=True))
    steps = branches.parts.settings.trained
    drawn = epoch.noise(seeds, steps, children=epoch.config.sampling.plan.children)
    noise, optimizer = BranchNoise(epoch.start(seeds), drawn), epoch.optimizer()

    def run(clock: PhaseClock) -> None:
        branches.run(prompts, noise, parameters=epoch.parameters, optimizer=optimizer, mark=clock.mark)

    return run


def by_start_noise(images: Sequence[Tensor], *, steps: int, children: int) -> Tensor:
    """The loop's images, scored batch by batch and step by step, in the trainer's order: start noise, step, child."""
    batches = [torch.stack(list(images[low : low + steps])) for low in range(0, len(images), steps)]
    return torch.cat([batch.unflatten(1, (-1, children)).transpose(0, 1).flatten(0, 2) for batch in batches])


def measure(epoch: Epoch, *, loop_start_noises: int, rounds: int) -> dict[str, object]:
    """How far the sides differ, and the fastest epoch of each, phase by phase."""
    sampling, plans = epoch.config.sampling, epoch.task.plans(0)
    roots, children = sampling.prompts_per_update * sampling.samples_per_prompt, sampling.plan.children
    same = min(max(sampling.micro_batch // children, 1), roots)
    sides: dict[str, Callable[[], Run]] = {
        "ours": partial(epochs.ours, epoch),
        "loop": partial(loop, epoch, loop_start_noises),
        "loop_same_batch": partial(loop, epoch, same),
    }
    in_order = partial(by_start_noise, steps=len(plans), children=children)
    made = {
        name: epoch.outcome(make, arrange=torch.cat if name == "ours" else in_order) for name, make in sides.items()
    }
    best = epochs.fastest_epochs(epoch, sides, rounds=rounds)
    rate = epoch.config.training.learning_rate
    return {
        **epochs.compared(best, target=TARGET),
        "rows_a_forward": {
            "ours": sampling.micro_batch,
            "loop": loop_start_noises * children,
            "loop_same_batch": same * children,
        },
        "start_noises": roots,
        "children": children,
        "branch_steps": len(plans),
        "steps": sampling.steps,
        "guidance": sampling.guidance,
        "forwards": count_forwards(plans, roots),
        "trained_rows": count_edges(plans, roots),
        **epochs.differences(made["ours"], made["loop"], learning_rate=rate),
        "same_batch": epochs.differences(made["ours"], made["loop_same_batch"], learning_rate=rate),
    }


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = epochs.command_line(__doc__, config="flow_grpo_tiny_sd3", rounds=2)
    parser.set_defaults(steps=10)
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=4, help="start noises a prompt; 4 are published")
    parser.add_argument("--children", type=int, default=6, help="a branch step; 6 are published")
    parser.add_argument("--loop-seeds", type=int, default=1, help="start noises a forward of the loop; 1 is published")
    return recorder.parse(parser, arguments)


def prepare_epoch(options: argparse.Namespace) -> Epoch:
    """All sides for a command line."""
    geometry = [
        f"sampling.prompts_per_update={options.prompts}",
        f"sampling.samples_per_prompt={options.seeds}",
        f"sampling.plan.children={options.children}",
    ]
    return epochs.prepare_epoch(options.config, [*METHOD, *geometry, *epochs.overrides_of(options)])


def main(arguments: Sequence[str]) -> None:
    """Measure and print one JSON line."""
    options = parse(arguments)
    epoch = prepare_epoch(options)
    figures = measure(epoch, loop_start_noises=options.loop_seeds, rounds=options.rounds)
    recorder.record("tempflow_epoch", arguments, options=options, results=figures)
    epoch.runtime.close()


if __name__ == "__main__":
    main(sys.argv[1:])
