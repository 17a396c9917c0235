"""A run folder as a real run would leave it, with made-up numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from difalign.report.environment import describe_environment
from difalign.report.log import RunLog
from difalign.report.records import Evaluation, SampleRecord, spread_over_kinds
from difalign.report.statistics import summarise_gain

KINDS = {
    "single": ("a red circle", "a blue square", "a green triangle", "a yellow star"),
    "count": ("three blue squares", "two red circles", "four green stars", "three yellow triangles"),
    "position": ("a red star at the top", "a blue circle at the left", "a green square at the bottom"),
    "relation": (
        "a red circle left of a blue square",
        "a green star above a yellow circle",
        "a red star below a cross",
    ),
    "count_pair": ("two red circles and a blue star", "three green squares and a yellow triangle"),
}
COLOURS = np.array([[214, 48, 49], [9, 100, 210], [30, 150, 70], [240, 190, 20]]) / 255.0
PROMPTS_PER_KIND = 12
SEEDS = 2
ROLLOUTS = 60

FakeRun = Callable[..., Path]


def records(rng: np.random.Generator, skill: float) -> tuple[SampleRecord, ...]:
    """Scores of every prompt and seed; a higher skill scores higher, harder kinds lower."""
    rows: list[SampleRecord] = []
    for hardness, (kind, texts) in enumerate(KINDS.items()):
        for index in range(PROMPTS_PER_KIND):
            for seed in range(SEEDS):
                strict = float(rng.random() < np.clip(0.9 - 0.19 * hardness + skill, 0, 1))
                partial = 1.0 if strict else float(rng.choice([0.25, 0.5, 0.75]))
                scores = {"total": 0.5 * strict + 0.5 * partial, "strict": strict, "partial": partial}
                prompt_index = hardness * PROMPTS_PER_KIND + index
                rows.append(SampleRecord(texts[index % len(texts)], kind, seed, scores, prompt_index))
    return tuple(rows)


def scenes(rng: np.random.Generator, count: int, size: int = 32) -> NDArray[np.float32]:
    """Pictures of a few coloured discs and squares on light grey, [count, 3, size, size]."""
    images = np.full((count, 3, size, size), 0.93, dtype=np.float32)
    rows, columns = np.mgrid[:size, :size]
    for image in images:
        for _ in range(rng.integers(1, 4)):
            top, left = rng.choice([0.17, 0.5, 0.83], 2) * size
            disc = (rows - top) ** 2 + (columns - left) ** 2 < (0.13 * size) ** 2
            square = np.maximum(abs(rows - top), abs(columns - left)) < 0.11 * size
            image[:, disc if rng.random() < 0.5 else square] = COLOURS[rng.integers(4)][:, None]
    return images


def metrics_row(rng: np.random.Generator, rollout: int, update: int) -> dict[str, object]:
    """One row of ``metrics.jsonl`` in a run that learns."""
    strict = 0.25 + 0.2 * (1 - np.exp(-rollout / 20)) + 0.04 * rng.normal()
    partial = 0.55 + 0.12 * (1 - np.exp(-rollout / 20)) + 0.03 * rng.normal()
    return {
        "rollout": rollout,
        "update": rollout * 2 + update,
        "seconds": 3.9 * rollout + 1.9 * update,
        "reward": 0.5 * (strict + partial),
        "reward_std": 0.3 + 0.02 * rng.normal(),
        "components": {"strict": strict, "partial": partial},
        "kl": 2e-4 * rollout * (1 + 0.2 * rng.random()),
        "loss": 1e-4 * rng.normal(),
        "policy_loss": 1e-4 * rng.normal(),
        "ratio_mean": 1 + 2e-5 * rng.normal() * update,
        "ratio_max_deviation": update * 4e-4 * rng.random(),
        "clip_fraction": update * 0.2 * rng.random(),
        "grad_norm": float(np.exp(0.4 * rng.normal() - 6)),
        "learning_rate": 1e-3,
        "zero_variance_groups": int(rng.integers(0, 4)),
        "denoiser_forwards": 960 * (rollout + 1),
        "reward_calls": 120 * (rollout + 1),
        "advantage_clipped": 0.01 * rng.random(),
        "groups": 10,
    }


def fake_run_in(root: Path) -> FakeRun:
    """Makes run folders: ``fake_run("demo", finished=False, evaluations=(0, 20), skill=0.2, size=32)``."""

    def make(
        name: str = "demo",
        *,
        finished: bool = True,
        evaluations: tuple[int, ...] = (0, 20, 40, 60),
        skill: float = 0.22,
        rollouts: int = ROLLOUTS,
        size: int = 32,
    ) -> Path:
        rng = np.random.default_rng(7)
        log = RunLog(root / name)
        log.write_config("seed: 0\npipeline: tiny-sd3\nrollout:\n  steps: 8\n  samples_per_prompt: 12\n")
        log.write_environment(describe_environment(arguments=["train_flow_grpo.py", "seed=0"]))
        kept: list[tuple[SampleRecord, ...]] = []
        for rollout in evaluations:
            kept.append(records(rng, skill * rollout / max(evaluations[-1], 1)))
            shown = spread_over_kinds(kept[-1], limit=20)
            label = "base" if rollout == 0 else ("tuned" if rollout == evaluations[-1] else "during")
            evaluation = Evaluation(rollout, label, kept[-1])
            log.write_evaluation(evaluation, images=scenes(rng, len(shown), size), shown=shown)
        for rollout in range(rollouts):
            for update in range(2):
                log.append_metrics(metrics_row(rng, rollout, update))
        if finished:
            gains = summarise_gain(kept[0], kept[-1], seed=0)
            totals = {
                "seconds": 234.5,
                "denoiser_forwards": 57600,
                "reward_calls": 7200,
                "seed": 0,
                "training_seconds": 198.0,
            }
            log.write_summary({**gains, **totals, "evaluation_seconds": 12.25})
        return log.folder

    return make
