"""One run: a method trained by the package's own trainer for so many seconds, scored at equal distances on the way.

Only the trainer's rollouts and updates count as training; scoring, loading and starting do not. One process, and as
many threads as ``OMP_NUM_THREADS`` says.

    python -m benchmarks.curves.training '{"pipeline": "tiny-sd3", "method": "flow_grpo", ...}'    # a worker
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.curves.methods import FAMILIES, Probe
from benchmarks.curves.rows import append
from benchmarks.recorder import environment
from benchmarks.sd3_models import quiet_libraries
from difalign.build.preflight import prepare
from difalign.build.run import build_task
from difalign.core.config import RunConfig
from difalign.core.prompts import Prompt
from difalign.core.protocols import Pipeline, RewardModel
from difalign.core.types import StepPlan
from difalign.objective.diversity import pairwise_distance
from difalign.rollout.engine import rollout
from difalign.train.evaluation import evaluation_seed
from difalign.train.policy_gradient import PolicyGradient
from difalign.train.runtime import Runtime
from difalign.train.scoring import decode_and_score

CLOCKS: Mapping[str, Callable[[], float]] = {"seconds": time.perf_counter, "cpu_seconds": time.process_time}
_STRICT = "verifier/strict"


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker is told."""

    pipeline: str
    method: str
    seed: int
    budget: float  # seconds of training
    points: int  # evaluations, the one before training among them
    output: str  # JSON lines
    clock: str = "seconds"  # what the budget and the distance of the evaluations are counted in
    prompts: str = "heldout"  # which prompts are scored; tuning scores training prompts
    changes: Mapping[str, str] = field(default_factory=dict)  # laid over the method's settings
    command: str = ""
    trial: bool = False  # whether the run is one line of its own, for tuning

    def config(self) -> RunConfig:
        """The configuration of the run."""
        return FAMILIES[self.pipeline].config(self.method, seed=self.seed, changes=self.changes)


@dataclass(frozen=True, slots=True)
class Score:
    """What a policy draws, over all samples of a probe."""

    total: float  # the mean reward that is trained on
    strict: float  # the share in which everything is right
    diversity: float  # the mean distance between the samples of a prompt


def settings_digest(job: Job) -> str:
    """Ten characters that change with any setting of a run, with its budget and with how it is scored."""
    probe, config = asdict(FAMILIES[job.pipeline].probe), job.config().model_dump(mode="json")
    text = json.dumps([config, probe, job.budget, job.clock, job.points, job.prompts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def spread(prompts: Sequence[Prompt], count: int) -> list[Prompt]:
    """``count`` prompts at even distances over the list, whose neighbours are often alike."""
    if count >= len(prompts):
        return list(prompts)
    return [prompts[(2 * i + 1) * len(prompts) // (2 * count)] for i in range(count)]


def measure(pipeline: Pipeline, reward: RewardModel, prompts: Sequence[Prompt], probe: Probe) -> Score:
    """Samples of ``prompts``, from the same noise at every call, scored."""
    texts = [prompt.text for prompt in prompts]
    index = torch.arange(len(texts)).repeat_interleave(probe.seeds_per_prompt)
    walk = rollout(
        pipeline,
        ((StepPlan(noise_level=probe.noise_level),) * probe.steps,),
        condition=pipeline.encode(texts),
        prompt_index=index,
        root_seeds=[evaluation_seed(text, s) for text in texts for s in range(probe.seeds_per_prompt)],
        micro_batch=probe.micro_batch,
    )
    media = decode_and_score(
        pipeline,
        reward,
        walk.final,
        [texts[i] for i in index.tolist()],
        micro_batch=probe.micro_batch,
        keep_thumbnails=True,
    )
    assert media.thumbnails is not None
    return Score(
        total=float(media.scores.double().mean()),
        strict=float(media.components[_STRICT].double().mean()),
        diversity=float(pairwise_distance(media.thumbnails, index).double().mean()),
    )


def train(job: Job) -> Iterator[dict[str, Any]]:
    """Train as ``job`` says and yield a row an evaluation: before, at equal distances, and at the end.

    Raises:
        ConfigError: if the configuration does not hold.
        RuntimeError, FloatingPointError: if a guard of the trainer stops the run.
    """
    probe = FAMILIES[job.pipeline].probe
    inputs = prepare(job.config(), check_output=False)
    runtime = Runtime(mixed_precision=inputs.config.training.mixed_precision)
    task = build_task(inputs, runtime)
    trainer = PolicyGradient(
        task.pipeline, task.reward, task.prompts, plans=task.plans, config=inputs.config, runtime=runtime
    )
    prompts = spread(task.heldout if job.prompts == "heldout" else task.prompts, probe.prompts)
    scored = task.pipeline.with_guidance(probe.guidance)
    account = _Account()
    distance, due, point = job.budget / (job.points - 1), 0.0, 0
    while True:
        spent = account.spent[job.clock]
        final = spent >= job.budget
        if final or spent >= due:
            begin = time.perf_counter()
            with trainer.averaged():
                score = measure(scored, task.reward, prompts, probe)
            yield {
                "point": point,
                "final": final,
                **account.figures(trainer),
                job.prompts: score.total,
                f"{job.prompts}_strict": score.strict,
                "diversity": score.diversity,
                "evaluation_seconds": time.perf_counter() - begin,
            }
            point += 1
            due = distance * (spent // distance + 1)  # a long rollout may pass several at once
        if final:
            runtime.close()
            return
        account.run(trainer)


@dataclass
class _Account:
    """What training has taken so far, and what it was rewarded with since the last look."""

    spent: dict[str, float] = field(default_factory=lambda: dict.fromkeys(CLOCKS, 0.0))
    rollouts: int = 0
    training_rows: int = 0
    rewards: list[float] = field(default_factory=list)

    def run(self, trainer: PolicyGradient) -> None:
        """One rollout with its updates; only this is timed."""
        before = {name: clock() for name, clock in CLOCKS.items()}
        rows = trainer.run(self.rollouts, _silent)
        for name, clock in CLOCKS.items():
            self.spent[name] += clock() - before[name]
        self.rollouts += 1
        self.training_rows += round(sum(row["rows"] for row in rows))
        self.rewards += [row["reward"] for row in rows]

    def figures(self, trainer: PolicyGradient) -> dict[str, float | None]:
        """The counts of a row."""
        mean = sum(self.rewards) / len(self.rewards) if self.rewards else None
        self.rewards = []
        return {
            "update": trainer.updates,
            "rollout": self.rollouts,
            "forwards": trainer.forwards,
            "training_rows": self.training_rows,
            "reward_calls": trainer.reward_calls,
            **self.spent,
            "training_reward": mean,
        }


def run_job(job: Job) -> None:
    """Train and write: a line an evaluation, or one line for a trial."""
    started = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())
    common = {"method": job.method, "seed": job.seed}
    about = {
        "command": job.command,
        "budget": job.budget,
        "clock": job.clock,
        "changes": dict(job.changes),
        "threads": torch.get_num_threads(),
        "environment": environment(),
    }
    mark = {"settings": settings_digest(job), "started": started}
    rows = []
    for row in train(job):
        rows.append(row)
        if not job.trial:
            append(Path(job.output), {**common, **row, **mark, **({} if row["point"] else {"run": about})})
    if job.trial:
        append(
            Path(job.output),
            {"pipeline": job.pipeline, **common, "trained": job.prompts, **mark, "points": rows, "run": about},
        )


def _silent(_phase: str, _done: int, _total: int) -> None:
    """Progress goes nowhere."""


if __name__ == "__main__":
    quiet_libraries()
    run_job(Job(**json.loads(sys.argv[1])))
