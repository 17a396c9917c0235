"""From final latents to rewards: decode and score in micro-batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from difalign.core.protocols import Pipeline, RewardModel
from difalign.core.types import RewardOutput
from difalign.objective.diversity import thumbnails


@dataclass(frozen=True, slots=True)
class Media:
    """Decoded samples and their scores."""

    scores: Tensor  # [N] float32 on CPU
    components: dict[str, Tensor]  # name -> [N] float32 on CPU
    pixels: Tensor | None  # [N, C, H, W] in [0, 1] on CPU, if kept
    thumbnails: Tensor | None = None  # [N, D] float32 on CPU, if kept


@torch.no_grad()
def decode_and_score(
    pipeline: Pipeline,
    reward: RewardModel,
    latents: Tensor,
    prompts: Sequence[str],
    *,
    micro_batch: int,
    keep_pixels: bool = False,
    keep_thumbnails: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Media:
    """Decode latents [N, *latent] and score them, ``micro_batch`` rows at a time.

    ``progress`` is told (rows scored, rows in all) after each.

    Raises:
        ValueError: if a reward is not finite, naming the first such prompt, or there is not one a sample.
    """
    scores: list[Tensor] = []
    components: dict[str, list[Tensor]] = {}
    pixels: list[Tensor] = []
    small: list[Tensor] = []
    for start in range(0, len(prompts), micro_batch):
        rows = slice(start, start + micro_batch)
        media = pipeline.decode(latents[rows])
        output = reward.score(media, prompts[rows])
        _check_length(reward.name, output, len(prompts[rows]))
        scores.append(output.scores.float().cpu())
        for name, values in output.components.items():
            components.setdefault(name, []).append(values.float().cpu())
        if keep_pixels:
            pixels.append(media.float().cpu())
        if keep_thumbnails:
            small.append(thumbnails(media).cpu())
        if progress is not None:
            progress(min(start + micro_batch, len(prompts)), len(prompts))
    total = torch.cat(scores)
    bad = (~total.isfinite()).nonzero().flatten().tolist()
    if bad:
        raise ValueError(
            f"reward {reward.name} gave {total[bad[0]]} for {prompts[bad[0]]!r}; it must be a finite number"
        )
    kept = torch.cat(pixels) if keep_pixels else None
    joined = {name: torch.cat(parts) for name, parts in components.items()}
    return Media(total, joined, kept, torch.cat(small) if keep_thumbnails else None)


def _check_length(name: str, output: RewardOutput, samples: int) -> None:
    for part, values in {"scores": output.scores, **output.components}.items():
        if values.shape != (samples,):
            raise ValueError(
                f"reward {name} gave {part} of shape {tuple(values.shape)} for {samples} samples; it must give one "
                f"number a sample, shape ({samples},)"
            )


@torch.no_grad()
def decode_in_batches(pipeline: Pipeline, latents: Tensor, *, micro_batch: int) -> Tensor:
    """Pixels [N, C, H, W] in [0, 1] float32 on CPU, decoded ``micro_batch`` rows at a time."""
    return torch.cat([pipeline.decode(chunk).float().cpu() for chunk in latents.split(micro_batch)])
