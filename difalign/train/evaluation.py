"""Held-out evaluation: noise-free samples from seeds that never change."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from difalign.core.prompts import Prompt
from difalign.core.protocols import Pipeline, RewardModel
from difalign.core.rng import derive_seed
from difalign.report.records import Evaluation, SampleRecord, spread_over_kinds
from difalign.rollout.engine import rollout
from difalign.rollout.plans import deterministic
from difalign.train.runtime import Runtime
from difalign.train.scoring import decode_and_score


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """The scores of every sample, and the pictures of those that are shown."""

    evaluation: Evaluation
    shown: tuple[int, ...]  # indices into evaluation.records
    images: Tensor | None  # [len(shown), C, H, W] in [0, 1]; on the main process only
    forwards: int  # network rows, all processes


@dataclass(frozen=True, slots=True)
class EvaluationPlan:
    """How held-out prompts are sampled."""

    steps: int
    seeds_per_prompt: int
    micro_batch: int
    shown: int = 36
    max_failed: float = 1.0  # the share of samples that may be without a score


@dataclass(frozen=True, slots=True)
class _Sample:
    index: int  # position in the whole evaluation
    record: SampleRecord
    pixels: Tensor | None


def evaluation_seed(prompt: str, seed_index: int) -> int:
    """The seed of one held-out sample: of the prompt alone, so every run and model starts from the same noise."""
    return derive_seed("evaluation", prompt, seed_index)


def evaluate(
    pipeline: Pipeline,
    reward: RewardModel,
    prompts: Sequence[Prompt],
    plan: EvaluationPlan,
    runtime: Runtime,
    *,
    rollout_index: int,
    label: str,
    progress: Callable[[int, int], None] | None = None,
) -> EvaluationResult:
    """Sample every prompt by the ODE and score it; prompts are shared among the processes.

    Raises:
        RuntimeError: if more samples have no score than the plan allows.
    """
    keys = [(p, s) for p in range(len(prompts)) for s in range(plan.seeds_per_prompt)]
    shown = spread_over_kinds([_record(prompts, key, {}) for key in keys], limit=plan.shown)
    # A reward that compares the samples of a prompt is given them all.
    unit = plan.seeds_per_prompt if getattr(reward, "groupwise", False) else 1
    mine = [unit * first + i for first in runtime.share(list(range(len(keys) // unit))) for i in range(unit)]
    at_once = max(plan.micro_batch // unit, 1) * unit
    samples: list[_Sample] = []
    forwards = 0
    for start in range(0, len(mine), at_once):
        rows = mine[start : start + at_once]
        part, spent = _evaluate_rows(pipeline, reward, prompts, [keys[row] for row in rows], plan)
        forwards += spent
        samples += [
            _Sample(row, record, image if row in shown else None)
            for row, (record, image) in zip(rows, part, strict=True)
        ]
        if progress is not None:
            progress(min(start + at_once, len(mine)), len(mine))
    gathered = sorted(runtime.gather(samples), key=lambda sample: sample.index)
    failed = sum(math.isnan(sample.record.scores["total"]) for sample in gathered)
    if failed > plan.max_failed * len(gathered):
        raise RuntimeError(
            f"evaluation {label!r}: {failed} of {len(gathered)} samples have no reward, more than guards.max_failed = "
            f"{plan.max_failed:g} allows; correct the reward, or allow more"
        )
    pictures = [gathered[index].pixels for index in shown]
    return EvaluationResult(
        evaluation=Evaluation(rollout_index, label, tuple(sample.record for sample in gathered)),
        shown=shown,
        images=torch.stack([picture for picture in pictures if picture is not None]) if runtime.is_main else None,
        forwards=round(runtime.total([forwards])[0]),
    )


def _evaluate_rows(
    pipeline: Pipeline,
    reward: RewardModel,
    prompts: Sequence[Prompt],
    keys: Sequence[tuple[int, int]],
    plan: EvaluationPlan,
) -> tuple[list[tuple[SampleRecord, Tensor]], int]:
    texts = [prompts[p].text for p, _ in keys]
    walk = rollout(
        pipeline,
        (deterministic(plan.steps),),
        condition=pipeline.encode(texts),
        prompt_index=torch.arange(len(texts)),
        root_seeds=[evaluation_seed(text, s) for text, (_, s) in zip(texts, keys, strict=True)],
        micro_batch=plan.micro_batch,
    )
    media = decode_and_score(
        pipeline,
        reward,
        walk.final,
        texts,
        micro_batch=plan.micro_batch,
        metadata=[prompts[p].metadata for p, _ in keys],
        keep_pixels=True,
    )
    assert media.pixels is not None
    part = []
    for row, key in enumerate(keys):
        scores = {"total": media.scores[row].item()}
        scores |= {name: values[row].item() for name, values in media.components.items()}
        part.append((_record(prompts, key, scores), media.pixels[row]))
    return part, walk.forwards


def _record(prompts: Sequence[Prompt], key: tuple[int, int], scores: dict[str, float]) -> SampleRecord:
    prompt = prompts[key[0]]
    return SampleRecord(prompt.text, prompt.kind, key[1], scores, key[0])
