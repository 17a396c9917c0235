"""Latents to scores: decoded and scored a micro-batch at a time, and sorted by prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from difalign.core.answers import checked
from difalign.core.protocols import Pipeline, RewardModel
from difalign.core.types import Metadata, Reading, RewardOutput
from difalign.search.ranking import Judged


@dataclass(frozen=True, slots=True)
class Verdict:
    """Scores of candidates, rows as they were given."""

    scores: tuple[float, ...]  # [R], NaN where there is none
    components: Mapping[str, tuple[float, ...]]  # name -> [R]
    errors: Mapping[int, str]  # row -> why it has no score
    pictures: Tensor | None  # [R, C, H, W] uint8 on CPU, if kept

    def of(self, positions: Sequence[int], *, index: Sequence[int], seeds: Sequence[int]) -> Judged:
        """The rows at ``positions``, which belong to one prompt, for a ranking rule."""
        return Judged(
            index=tuple(index[i] for i in positions),
            seeds=tuple(seeds[i] for i in positions),
            scores=tuple(self.scores[i] for i in positions),
            components={name: tuple(values[i] for i in positions) for name, values in self.components.items()},
        )


def unjudged(rows: int) -> Verdict:
    """The verdict of nobody, for rules that read no scores."""
    return Verdict((float("nan"),) * rows, {}, {}, None)


@dataclass(frozen=True, slots=True)
class Judge:
    """Decodes and scores some rows at a time."""

    pipeline: Pipeline
    prompts: tuple[str, ...]
    metadata: Metadata | None  # one entry a prompt

    def part(
        self,
        reward: RewardModel,
        latents: Tensor,
        prompt: Sequence[int],
        *,
        sigma: float | None,
        keep: bool,
        reading: Reading,
    ) -> Verdict:
        """One micro-batch: latents [B, *latent] of prompts ``prompt`` [B].

        A reward that reads latents is handed them as they are; pictures to keep are then of their first source.

        Raises:
            ValueError: if the reward does not give one score a row, or what it raises itself.
        """
        asked = self.pipeline.decode(latents) if reading.decoded else latents
        texts = [self.prompts[i] for i in prompt]
        metadata = None if self.metadata is None else [self.metadata[i] for i in prompt]
        answer = checked(reward.name, reward.score(asked, texts, metadata=metadata, sigma=sigma), texts)
        return Verdict(
            scores=tuple(answer.scores.tolist()),
            components=_components(answer),
            errors=dict(answer.errors),
            pictures=self._pictures(asked, reading) if keep else None,
        )

    def _pictures(self, asked: Tensor, reading: Reading) -> Tensor:
        """What was scored as pictures, [B, C, H, W] uint8 on CPU."""
        pixels = asked
        if not reading.decoded:
            pixels = self.pipeline.decode(asked[:, : asked.shape[1] // len(reading.sources)])
        return (pixels.float() * 255).round().clamp(0, 255).to("cpu", torch.uint8)


def joined(parts: Sequence[Verdict]) -> Verdict:
    """Verdicts of micro-batches as one."""
    shared = [name for name in parts[0].components if all(name in part.components for part in parts)]
    offsets = [0]
    for part in parts:
        offsets.append(offsets[-1] + len(part.scores))
    pictures = [part.pictures for part in parts if part.pictures is not None]
    return Verdict(
        scores=tuple(score for part in parts for score in part.scores),
        components={name: tuple(value for part in parts for value in part.components[name]) for name in shared},
        errors={
            offset + row: why for offset, part in zip(offsets, parts, strict=False) for row, why in part.errors.items()
        },
        pictures=torch.cat(pictures) if len(pictures) == len(parts) else None,
    )


def _components(answer: RewardOutput) -> dict[str, tuple[float, ...]]:
    return {name: tuple(values.tolist()) for name, values in answer.components.items()}
