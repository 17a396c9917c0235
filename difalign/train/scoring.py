"""From final latents to rewards: decode and score in micro-batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from difalign.core.answers import checked
from difalign.core.protocols import Pending, Pipeline, RewardModel, SubmittedReward
from difalign.core.types import Metadata, RewardOutput
from difalign.objective.diversity import thumbnails

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Media:
    """Decoded samples and their scores."""

    scores: Tensor  # [N] float32 on CPU; NaN where a sample could not be scored
    components: dict[str, Tensor]  # name -> [N] float32 on CPU
    pixels: Tensor | None  # [N, C, H, W] in [0, 1] on CPU, if kept
    thumbnails: Tensor | None = None  # [N, D] float32 on CPU, if kept
    errors: Mapping[int, str] = field(default_factory=dict)  # row -> why it could not be scored


def decode_and_score(
    pipeline: Pipeline,
    reward: RewardModel,
    latents: Tensor,
    prompts: Sequence[str],
    *,
    micro_batch: int,
    metadata: Metadata | None = None,
    keep_pixels: bool = False,
    keep_thumbnails: bool = False,
    progress: Progress | None = None,
) -> Media:
    """Decode latents [N, *latent] and score them, ``micro_batch`` rows at a time; see ``decode_and_submit``."""
    return decode_and_submit(
        pipeline,
        reward,
        latents,
        prompts,
        micro_batch=micro_batch,
        metadata=metadata,
        keep_pixels=keep_pixels,
        keep_thumbnails=keep_thumbnails,
        progress=progress,
    ).result()


@torch.no_grad()
def decode_and_submit(
    pipeline: Pipeline,
    reward: RewardModel,
    latents: Tensor,
    prompts: Sequence[str],
    *,
    micro_batch: int,
    metadata: Metadata | None = None,
    keep_pixels: bool = False,
    keep_thumbnails: bool = False,
    progress: Progress | None = None,
) -> Scoring:
    """Decode latents [N, *latent] and hand them to a reward, ``micro_batch`` rows at a time.

    A reward that is computed elsewhere works on while this process goes on. One that compares samples is handed whole
    prompts, as many as ``micro_batch`` rows hold and at least one. ``progress`` is told (rows handed over, rows in all)
    after each.
    """
    chunks = _chunks(prompts, micro_batch, whole=getattr(reward, "groupwise", False))
    pending, pixels, small, done = [], [], [], 0
    for rows in chunks:
        parts = [pipeline.decode(latents[rows[at : at + micro_batch]]) for at in range(0, len(rows), micro_batch)]
        media = parts[0] if len(parts) == 1 else torch.cat(parts)
        texts = [prompts[row] for row in rows]
        told = None if metadata is None else [metadata[row] for row in rows]
        pending.append(_submitted(reward, media, texts, told))
        if keep_pixels:
            pixels.append(media.float().cpu())
        if keep_thumbnails:
            small.append(thumbnails(media).cpu())
        done += len(rows)
        if progress is not None:
            progress(done, len(prompts))
    order = torch.tensor([row for rows in chunks for row in rows])
    return Scoring(
        reward.name,
        prompts,
        chunks,
        pending,
        pixels=_in_order(pixels, order) if keep_pixels else None,
        thumbnails=_in_order(small, order) if keep_thumbnails else None,
    )


@dataclass(frozen=True, slots=True)
class Scoring:
    """Decoded samples whose scores are on their way."""

    reward: str
    prompts: Sequence[str]
    chunks: Sequence[Sequence[int]]  # rows of each answer
    pending: Sequence[Pending]
    pixels: Tensor | None
    thumbnails: Tensor | None

    def result(self) -> Media:
        """Samples with their scores, in the order of the prompts.

        Raises:
            ValueError: if a score is not finite though the reward does not say so, naming the first such prompt; or
                there is not one a sample.
        """
        answers = [self._answer(rows, pending) for rows, pending in zip(self.chunks, self.pending, strict=True)]
        order = torch.tensor([row for rows in self.chunks for row in rows])
        names = dict.fromkeys(name for answer in answers for name in answer.components)
        components = {
            name: _in_order([answer.components.get(name, _nothing(answer)).cpu() for answer in answers], order)
            for name in names
        }
        errors = {
            rows[row]: why
            for rows, answer in zip(self.chunks, answers, strict=True)
            for row, why in answer.errors.items()
        }
        scores = _in_order([answer.scores.cpu() for answer in answers], order)
        return Media(scores, components, self.pixels, self.thumbnails, errors)

    def _answer(self, rows: Sequence[int], pending: Pending) -> RewardOutput:
        said, prompts = pending.result(), [self.prompts[row] for row in rows]
        answer = checked(self.reward, said, prompts)
        for row in sorted(answer.errors):
            if said.valid is None or bool(said.valid[row]):
                raise ValueError(
                    f"reward {self.reward} gave {float(said.scores[row])} for {prompts[row]!r}; it must be a finite "
                    "number, or say in `valid` that there is none"
                )
        return answer


@dataclass(frozen=True, slots=True)
class _Answered:
    """An answer that is already there."""

    answer: RewardOutput

    def result(self) -> RewardOutput:
        return self.answer


def _submitted(reward: RewardModel, media: Tensor, prompts: Sequence[str], metadata: Metadata | None) -> Pending:
    if isinstance(reward, SubmittedReward):
        return reward.submit(media, prompts, metadata=metadata)
    return _Answered(reward.score(media, prompts, metadata=metadata))


def _chunks(prompts: Sequence[str], micro_batch: int, *, whole: bool) -> list[list[int]]:
    """Rows that are scored together: so many of them in their order, or all of so many prompts."""
    if not whole:
        return [
            list(range(start, min(start + micro_batch, len(prompts)))) for start in range(0, len(prompts), micro_batch)
        ]
    of_prompt: dict[str, list[int]] = {}
    for row, prompt in enumerate(prompts):
        of_prompt.setdefault(prompt, []).append(row)
    chunks: list[list[int]] = []
    for rows in of_prompt.values():
        if chunks and len(chunks[-1]) + len(rows) <= micro_batch:
            chunks[-1].extend(rows)
        else:
            chunks.append(list(rows))
    return chunks


def _in_order(parts: Sequence[Tensor], order: Tensor) -> Tensor:
    """The rows of all parts, each in its place."""
    joined = torch.cat(list(parts))
    return torch.empty_like(joined).index_copy_(0, order, joined)


def _nothing(answer: RewardOutput) -> Tensor:
    return torch.full_like(answer.scores, torch.nan)


@torch.no_grad()
def decode_in_batches(pipeline: Pipeline, latents: Tensor, *, micro_batch: int) -> Tensor:
    """Pixels [N, C, H, W] in [0, 1] float32 on CPU, decoded ``micro_batch`` rows at a time."""
    return torch.cat([pipeline.decode(chunk).float().cpu() for chunk in latents.split(micro_batch)])
