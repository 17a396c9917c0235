"""The first two stages of a distillation: walks seen on the way are stored, and the teacher scores how they ended."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from difalign.core.errors import ConfigError
from difalign.core.protocols import Pipeline, RewardModel
from difalign.core.types import Source
from difalign.rollout.estimates import walk_estimates
from difalign.train.estimate_store import (
    FINAL,
    EstimateStore,
    ShardLabels,
    StoredPrompt,
    level_key,
    read_labels,
    write_labels,
)
from difalign.train.team import Team

Keep = Callable[[Tensor], Tensor]  # latents [N, *latent] to what is stored of them, or back to pixels in [0, 1]
Progress = Callable[[int, int], None]  # (rows done, rows in all) of this process


@dataclass(frozen=True, slots=True)
class Walk:
    """How samples come about and what is kept of them."""

    steps: int
    sigmas: tuple[float, ...]  # as the grid has them, from noisy to clean
    sources: tuple[Source, ...]
    micro_batch: int
    keep: Keep  # of what a level shows
    keep_final: Keep


def half_precision(latents: Tensor) -> Tensor:
    """Latents as they are stored, on the CPU.

    Raises:
        ValueError: if one is not finite, or too large for half precision.
    """
    stored = latents.to("cpu", torch.float16)
    if not bool(stored.isfinite().all()):
        raise ValueError(
            f"a latent of size {float(latents.abs().max()):g} does not fit half precision, or is no number; "
            "look at the pipeline, or use sampling.store=pixels"
        )
    return stored


def single_precision(latents: Tensor) -> Tensor:
    """Finished latents as they are stored, on the CPU: the teacher's scores are those of the sample itself."""
    return latents.to("cpu", torch.float32)


def generate(pipeline: Pipeline, store: EstimateStore, walk: Walk, *, team: Team, progress: Progress) -> int:
    """Make the shards that are missing, each process those of its share; the rows that were made, by this one.

    Raises:
        ValueError: what walking raises, or if a latent cannot be stored.
    """
    own = team.share(team.agree(store.missing()))
    total = sum(len(store.plan.rows_of(shard)) for shard in own) * walk.steps
    done = 0
    for shard in own:
        before = done

        def tell(rows: int, _of: int, before: int = before) -> None:
            progress(before + rows, total)

        _write_shard(pipeline, store, walk, shard, tell)
        done += len(store.plan.rows_of(shard)) * walk.steps
    team.barrier()
    return done // walk.steps


def _write_shard(pipeline: Pipeline, store: EstimateStore, walk: Walk, shard: int, progress: Progress) -> None:
    rows = store.plan.rows_of(shard)
    texts = [store.plan.prompt_of(row).text for row in rows]
    place = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    condition = pipeline.encode(list(place))
    parts: dict[str, list[Tensor]] = {}
    for low in range(0, len(rows), walk.micro_batch):
        own = rows[low : low + walk.micro_batch]
        found = walk_estimates(
            pipeline,
            condition=condition,
            prompt_index=torch.tensor([place[store.plan.prompt_of(row).text] for row in own]),
            seeds=[store.plan.seed_of(row) for row in own],
            num_steps=walk.steps,
            sigmas=walk.sigmas,
            sources=walk.sources,
            micro_batch=walk.micro_batch,
            progress=lambda done, _, low=low: progress(low * walk.steps + done, len(rows) * walk.steps),
        )
        for source, levels in found.clean.items():
            for sigma, latents in zip(found.sigmas, levels, strict=True):
                parts.setdefault(level_key(source, sigma), []).append(walk.keep(latents))
        parts.setdefault(FINAL, []).append(walk.keep_final(found.final))
    store.write(shard, {key: torch.cat(pieces) for key, pieces in parts.items()})


def unlabelled(store: EstimateStore, *, teacher: str) -> list[int]:
    """The shards without the teacher's scores.

    Raises:
        ConfigError: if scores are damaged or of another teacher.
    """
    return [shard for shard in range(store.plan.shards) if read_labels(store, shard, teacher=teacher) is None]


def label(
    reward: RewardModel,
    store: EstimateStore,
    *,
    teacher: str,
    pixels: Keep,
    micro_batch: int,
    team: Team,
    progress: Progress,
) -> int:
    """Score the finished samples of the shards that have no scores yet; the rows that could not be scored, in all.

    Args:
        reward: the teacher.
        store: with all of its shards.
        teacher: names its weights in the files.
        pixels: what is stored of finished samples to pixels in [0, 1], where the teacher scores them.
        micro_batch: samples a scoring.
        team: the processes.
        progress: called after every scoring.

    Raises:
        ConfigError: if shards are missing or damaged, or scores are of another teacher.
        ValueError: what scoring raises.
    """
    missing = store.missing()
    if missing:
        raise ConfigError(f"{store.folder}: {len(missing)} of {store.plan.shards} shards are missing; generate first")
    own = team.share(team.agree(unlabelled(store, teacher=teacher)))
    total = sum(len(store.plan.rows_of(shard)) for shard in own)
    done = 0
    for shard in own:
        rows = store.plan.rows_of(shard)
        scores: list[float | None] = []
        errors: dict[int, str] = {}
        for low in range(0, len(rows), micro_batch):
            prompts = [store.plan.prompt_of(row) for row in rows[low : low + micro_batch]]
            finished = pixels(store.tensor(shard, FINAL)[low : low + micro_batch])
            part, wrong = _score(reward, finished, prompts_of=prompts)
            scores += part
            errors |= {low + row: text for row, text in wrong.items()}
            done += len(prompts)
            progress(done, total)
        write_labels(store, shard, ShardLabels(teacher, tuple(scores), errors))
    team.barrier()
    return sum(
        len(found.scores) - len(found.valid)
        for shard in range(store.plan.shards)
        if (found := read_labels(store, shard, teacher=teacher)) is not None
    )


@torch.no_grad()
def _score(
    reward: RewardModel, finished: Tensor, *, prompts_of: Sequence[StoredPrompt]
) -> tuple[list[float | None], dict[int, str]]:
    """The score of each sample, None where there is none, and why."""
    texts, metadata = [prompt.text for prompt in prompts_of], [prompt.metadata for prompt in prompts_of]
    found = reward.score(finished, texts, metadata=metadata)
    scores = found.scores.float().cpu().tolist()
    valid = [True] * len(scores) if found.valid is None else found.valid.tolist()
    known = [score if good and math.isfinite(score) else None for score, good in zip(scores, valid, strict=True)]
    reasons = {
        row: found.errors.get(row, "the score is not finite") for row, score in enumerate(known) if score is None
    }
    return known, reasons
