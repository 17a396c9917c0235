"""The candidates of a search: who they are, and where on the chain they stand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from difalign.core.protocols import Pipeline
from difalign.core.rng import row_seed


@dataclass(frozen=True, slots=True)
class Candidates:
    """Candidates of any number of prompts at one level of the chain, those of a prompt side by side."""

    prompt: tuple[int, ...]  # [R] row of the prompt list
    index: tuple[int, ...]  # [R] which candidate of its prompt
    seeds: tuple[int, ...]  # [R] keys of all noise a candidate ever sees
    latents: Tensor  # [R, *latent] float32

    def __len__(self) -> int:
        return len(self.index)

    def rows(self, positions: Sequence[int]) -> Candidates:
        """Those at ``positions``, in that order; latents are compacted."""
        chosen = torch.tensor(positions, dtype=torch.int64, device=self.latents.device)
        return Candidates(
            prompt=tuple(self.prompt[i] for i in positions),
            index=tuple(self.index[i] for i in positions),
            seeds=tuple(self.seeds[i] for i in positions),
            latents=self.latents[chosen],
        )

    def at(self, latents: Tensor) -> Candidates:
        """The same candidates elsewhere on the chain."""
        return replace(self, latents=latents)

    def by_prompt(self) -> dict[int, list[int]]:
        """Prompt -> positions of its candidates, in order."""
        positions: dict[int, list[int]] = {}
        for position, prompt in enumerate(self.prompt):
            positions.setdefault(prompt, []).append(position)
        return positions


def candidate_seeds(seed: int, prompt: str, count: int) -> tuple[int, ...]:
    """The seeds of a prompt's first candidates, those of ``difalign.sample``: fewer are the beginning of more."""
    return tuple(row_seed(seed, prompt, index, 0) for index in range(count))


def start(pipeline: Pipeline, prompts: Sequence[str], *, count: int, seed: int) -> Candidates:
    """``count`` candidates of every prompt at the noisiest level, each drawn from a generator of its own."""
    seeds = tuple(each for prompt in prompts for each in candidate_seeds(seed, prompt, count))
    latents = pipeline.initial_latents([torch.Generator().manual_seed(each) for each in seeds])
    return Candidates(
        prompt=tuple(p for p in range(len(prompts)) for _ in range(count)),
        index=tuple(range(count)) * len(prompts),
        seeds=seeds,
        latents=latents.to(pipeline.device, torch.float32),
    )
