"""One B2-DiffuRL stage, sampling to update, against three processes that pass files, as the published scripts do.

Both sides work on the shipped tiny-sd15 with LoRA and on the shipped tiny-clip as reward: the same weights, prompts,
start noises and noise of the steps, interval, branches, thresholds, order of trajectories and loss. Ours is the trainer
in one process; ``published_stage`` describes the other side. Where its files cut pixels to eight bits, so does the
reward that ours is given.

That both do the same is checked first: the rewards, the trajectories that are trained on, the gradient of the first
update (relative to its largest element) and the weights at the end (in learning rates). ``ratio`` is wall-clock of the
work alone, ``ratio_cpu`` processor seconds of it; the time in which the three processes start, import and load, once a
stage, comes on top in ``ratio_with_startup``. The aim is 0.5.

    python -m benchmarks.bench_b2_stage --start-noises 8 --children 5 --loop-batch 8
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import epochs, published_stage, recorder
from benchmarks.epochs import Epoch
from benchmarks.published_stage import NOISE, Job
from benchmarks.timing import PhaseClock
from difalign.build.cards import load_reward_card
from difalign.build.definitions import find_file
from difalign.core.prompts import read_prompts
from difalign.core.protocols import RewardModel
from difalign.core.rng import row_seed
from difalign.core.types import Metadata, RewardOutput
from difalign.rollout.trie import count_forwards
from difalign.train.policy_gradient import PolicyGradient
from difalign.train.sampler import number_draws, uniform_prompts

TARGET = 0.5
PROMPTS = "samples/prompts/tiny_train.jsonl"
METHOD = (  # arXiv 2503.11240, the released script; fewer trajectories an update and no half precision
    "pipeline=tiny-sd15",
    "rewards.tiny-clip.weight=1.0",
    "sampling.rule=ddim",
    "sampling.noise_level=1.0",
    "sampling.plan.kind=split",
    "sampling.plan.last_step_noise=true",
    "sampling.draw=uniform",
    "sampling.samples_per_prompt=1",
    "curriculum.stages=100",
    "objective.timestep_fraction=1.0",
    "objective.clip_range=0.1",
    "objective.advantage.statistics=stage_history",
    "objective.advantage.group_by=seed",
    "objective.advantage.ddof=1",
    "objective.advantage.eps=1e-8",
    "objective.advantage.selection={positive: 0.5, negative: -0.5}",
    "training.inner_epochs=2",
    "training.tail=drop",
    "training.learning_rate=1e-4",
    "training.lora.rank=4",
    "training.lora.alpha=4",
    "training.detach_uncond=false",
)


@dataclass(frozen=True, slots=True)
class Cut:
    """A reward that sees pixels cut to eight bits, as files of them are."""

    reward: RewardModel
    name: str = "cut"
    differentiable: bool = False

    def score(
        self, media: Tensor, prompts: Sequence[str], *, metadata: Metadata | None = None, sigma: float | None = None
    ) -> RewardOutput:
        """The inner reward's."""
        return self.reward.score((media * 255).to(torch.uint8).float() / 255, prompts, metadata=metadata, sigma=sigma)


@dataclass(frozen=True, slots=True)
class Seconds:
    """What something took."""

    wall: float
    cpu: float


@dataclass(frozen=True, slots=True)
class Stage:
    """Three processes: what they worked and, beside that, how long they took to start and load."""

    work: Seconds
    startup: Seconds


def overrides(options: argparse.Namespace, folder: Path) -> list[str]:
    """The stage of a command line as settings; a list of prompts is written into ``folder``."""
    every = read_prompts(find_file(PROMPTS))
    (folder / "prompts.txt").write_text("\n".join(prompt.text for prompt in every[:: len(every) // options.prompts]))
    return [
        *METHOD,
        f"prompts.train={folder / 'prompts.txt'}",
        f"sampling.prompts_per_update={options.start_noises}",
        f"sampling.plan.children={options.children}",
        f"training.trajectories_per_update={options.trajectories}",
        f"sampling.guidance={options.guidance}",
        f"sampling.micro_batch={options.micro_batch}",
        f"training.micro_batch={options.micro_batch}",
        f"sampling.steps={options.steps}",
        f"curriculum.first={options.interval}",
        f"curriculum.last={options.steps}",
    ]


# --- the published structure --------------------------------------------------------------------------------------


def write_stage(epoch: Epoch, folder: Path, *, batch: int) -> Job:
    """The job of the three processes, with the adapters and the noise that they begin with."""
    config = epoch.config
    sampling, objective, training = config.sampling, config.objective, config.training
    (chosen,) = number_draws(
        [
            [epoch.task.prompts[i].text for i in indices]
            for indices in uniform_prompts(
                len(epoch.task.prompts),
                updates=1,
                prompts_per_update=sampling.prompts_per_update,
                seed=config.seed,
                rollout=0,
            )
        ]
    )
    seeds = [row_seed(config.seed, draw.text, draw.repeat, 0) for draw in chosen]
    noise = epoch.noise(seeds, range(sampling.steps), children=sampling.plan.children)
    torch.save({"start": epoch.start(seeds), "steps": noise}, folder / NOISE)
    epoch.task.pipeline.tuning.save_lora(folder / "before")
    job = Job(
        pipeline=epoch.adapter.diffusers_pipeline.config._name_or_path,
        adapters=str(folder / "before"),
        prompts=tuple(draw.text for draw in chosen),
        reward=str(load_reward_card("tiny-clip").weights()),
        steps=sampling.steps,
        interval=len(config.interval(0)),
        children=sampling.plan.children,
        eta=sampling.noise_level,
        guidance=sampling.guidance,
        batch=batch,
        thresholds=(objective.advantage.selection.positive, objective.advantage.selection.negative),
        advantage_clip=objective.advantage.clip,
        advantage_eps=objective.advantage.eps,
        clip_range=objective.clip_range,
        trajectories_per_update=training.trajectories_per_update,
        passes=training.inner_epochs,
        order_key=(config.seed, 0),
        optimizer={
            "lr": training.learning_rate,
            "betas": training.betas,
            "weight_decay": training.weight_decay,
            "eps": training.eps,
        },
        max_grad_norm=training.max_grad_norm,
    )
    job.write(folder)
    return job


def run_stage(folder: Path) -> Stage:
    """The three processes, one after the other.

    Raises:
        CalledProcessError: if one of them fails.
    """
    work, startup = Seconds(0.0, 0.0), Seconds(0.0, 0.0)
    for step in published_stage.STEPS:
        begin = time.perf_counter()
        command = [sys.executable, "-m", "benchmarks.published_stage", step, str(folder)]
        subprocess.run(command, check=True, capture_output=True, text=True)
        whole = time.perf_counter() - begin
        spent = json.loads((folder / f"{step}.json").read_text())
        work = Seconds(work.wall + spent["wall"], work.cpu + spent["cpu"])
        startup = Seconds(startup.wall + whole - spent["wall"], startup.cpu + spent["startup_cpu"])
    return Stage(work, startup)


# --- ours ---------------------------------------------------------------------------------------------------------


def run_ours(epoch: Epoch) -> Seconds:
    """The trainer; it is made beforehand, as a run makes it once for all stages."""
    epoch.reset()
    run = epochs.ours(epoch, reward=Cut(epoch.reward))
    wall, cpu = time.perf_counter(), time.process_time()
    run(PhaseClock())
    return Seconds(time.perf_counter() - wall, time.process_time() - cpu)


def scored_and_kept(epoch: Epoch) -> tuple[Tensor, list[int]]:
    """The reward of every sample of a stage, and the samples whose trajectories are kept."""
    epoch.reset()
    trainer = PolicyGradient(
        epoch.task.pipeline,
        Cut(epoch.reward),
        epoch.task.prompts,
        plans=epoch.task.plans,
        config=epoch.config,
        runtime=epoch.runtime,
    )
    (batch,) = trainer._collector.collect(0, lambda _phase, _done, _total: None)
    (advantages,) = trainer._comparison.advantages([batch])
    assert advantages.extremes is not None
    edge, leaf = batch.scored.trajectories.descent.cpu()
    return batch.rewards["total"], leaf[torch.isin(edge, advantages.extremes.rows)].unique().tolist()


# --- the comparison -----------------------------------------------------------------------------------------------


def check(epoch: Epoch, folder: Path, job: Job) -> dict[str, object]:
    """How far the sides differ; also their warm-up."""
    dataclasses.replace(job, keep_outcome=True).write(folder)
    run_stage(folder)
    job.write(folder)
    rewards, kept = scored_and_kept(epoch)
    ours = epoch.outcome(lambda: epochs.ours(epoch, reward=Cut(epoch.reward)))
    theirs = torch.load(folder / published_stage.OUTCOME, weights_only=True)
    names = [name for name, value in epoch.task.pipeline.network.named_parameters() if value.requires_grad]
    gradient, weights = (
        torch.cat([theirs[kind][name.replace(".default.", ".")].flatten() for name in names])
        for kind in ("gradient", "weights")
    )
    order = json.loads((folder / published_stage.ORDER).read_text())
    return {
        "max_reward_difference": float((rewards - published_stage.rewards(folder, job)).abs().max()),
        "same_trajectories": kept == sorted(set(order)),
        "max_gradient_difference": float((ours.gradient - gradient).abs().max() / gradient.abs().max()),
        "max_update_difference": float((ours.weights - weights).abs().max()) / job.optimizer["lr"],
        "kept": len(kept),
        "updates": len(order) // job.trajectories_per_update,
    }


def measure(epoch: Epoch, folder: Path, *, loop_batch: int, rounds: int, startup: Seconds) -> dict[str, object]:
    """How far the sides differ, and the fastest stage of each over alternating rounds."""
    job = write_stage(epoch, folder, batch=loop_batch)
    found = check(epoch, folder, job)
    pairs = [(run_ours(epoch), run_stage(folder)) for _ in range(rounds)]
    best = Seconds(min(ours.wall for ours, _ in pairs), min(ours.cpu for ours, _ in pairs))
    stage = min((stage for _, stage in pairs), key=lambda stage: stage.work.wall)
    whole = stage.work.wall + stage.startup.wall
    return {
        "ratio": best.wall / stage.work.wall,
        "target": TARGET,
        "ratio_cpu": best.cpu / min(each.work.cpu for _, each in pairs),
        "ratio_with_startup": best.wall / whole,
        "wall_seconds": {"ours": best.wall, "stage": stage.work.wall, "stage_startup": stage.startup.wall},
        "cpu_seconds": {"ours": best.cpu, "stage": stage.work.cpu, "stage_startup": stage.startup.cpu},
        "startup_once": {"wall": startup.wall, "cpu": startup.cpu},
        "forwards": {
            "ours": count_forwards(epoch.task.plans(0), len(job.prompts)),
            "stage": len(job.prompts) * (job.steps - job.interval + job.children * job.interval),
        },
        "samples": len(job.prompts) * job.children,
        "interval": job.interval,
        **found,
    }


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = recorder.command_line(__doc__, rounds=1)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--interval", type=int, default=14, help="last steps; the released script begins with 14")
    parser.add_argument("--guidance", type=float, default=5.0)
    parser.add_argument("--start-noises", type=int, default=8, help="256 are published")
    parser.add_argument("--prompts", type=int, default=2, help="45 are published, each drawn about six times")
    parser.add_argument("--children", type=int, default=5)
    parser.add_argument("--trajectories", type=int, default=8, help="an update; 128 are published")
    parser.add_argument("--micro-batch", type=int, default=120, help="rows a forward of ours")
    parser.add_argument("--loop-batch", type=int, default=8, help="start noises a forward of the scripts; 8 published")
    return recorder.parse(parser, arguments)


def main(arguments: Sequence[str]) -> None:
    """Measure and print one JSON line."""
    options = parse(arguments)
    with tempfile.TemporaryDirectory() as name:
        wall, cpu = time.perf_counter(), time.process_time()
        epoch = epochs.prepare_epoch(None, overrides(options, Path(name)))
        startup = Seconds(time.perf_counter() - wall, time.process_time() - cpu)
        figures = measure(epoch, Path(name), loop_batch=options.loop_batch, rounds=options.rounds, startup=startup)
    recorder.record("b2_stage", arguments, options=options, results=figures)
    epoch.runtime.close()


if __name__ == "__main__":
    main(sys.argv[1:])
