"""Latents on the way, beside the teacher's scores of what became of them: what a latent student is taught on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from difalign.core.student_bank import weights_sha256
from difalign.core.types import Source


@runtime_checkable
class LatentTable(Protocol):
    """Latents of N trajectories at some levels of noise."""

    @property
    def prompts(self) -> Sequence[str]:
        """The prompt of each trajectory, N."""
        ...

    @property
    def target(self) -> Tensor:
        """The teacher's raw score of each finished sample, [N] float32."""
        ...

    def latents(self, sigma: float, rows: Tensor, sources: Sequence[Source]) -> Tensor:
        """At noise ``sigma`` of the trajectories ``rows`` ([B] int64), sources along the channels, [B, k C, h, w].

        Raises:
            ValueError: if the table has none at that noise or of that source.
        """
        ...


@dataclass(frozen=True, slots=True)
class StoredLatents:
    """A table in memory, or mapped into it."""

    prompts: tuple[str, ...]  # N
    target: Tensor  # [N] float32
    sigmas: tuple[float, ...]  # L
    sources: Mapping[Source, Tensor]  # [L, N, C, h, w] each, of any precision

    def __post_init__(self) -> None:
        wanted = (len(self.sigmas), len(self.prompts))
        for source, latents in self.sources.items():
            if latents.ndim != 5 or tuple(latents.shape[:2]) != wanted:
                raise ValueError(
                    f"{source} latents have shape {tuple(latents.shape)}: give [L, N, C, h, w] with L = {wanted[0]} "
                    f"levels and N = {wanted[1]} trajectories"
                )
        if tuple(self.target.shape) != wanted[1:]:
            raise ValueError(f"{wanted[1]} prompts, targets of shape {tuple(self.target.shape)}: give one a trajectory")

    def latents(self, sigma: float, rows: Tensor, sources: Sequence[Source]) -> Tensor:
        """See ``LatentTable``."""
        if sigma not in self.sigmas:
            raise ValueError(f"there are no latents at sigma {sigma:g}, only at {sorted(self.sigmas)}")
        if missing := [source for source in sources if source not in self.sources]:
            raise ValueError(f"there are no {missing[0]} latents, only {', '.join(self.sources)}: record them as well")
        level = self.sigmas.index(sigma)
        return torch.cat([self.sources[s][level][rows.to(self.sources[s].device)].float() for s in sources], dim=1)


def in_memory(table: LatentTable, sigmas: Sequence[float], sources: Sequence[Source]) -> StoredLatents:
    """A table read once, for training that comes back to every row: some levels and sources of it, in float16.

    Raises:
        ValueError: if the table lacks a level or a source.
    """
    parts = torch.arange(len(table.prompts)).split(1024)

    def level(sigma: float, source: Source) -> Tensor:
        return torch.cat([table.latents(sigma, rows, (source,)).half() for rows in parts])

    held = {source: torch.stack([level(sigma, source) for sigma in sigmas]) for source in sources}
    return StoredLatents(tuple(table.prompts), table.target, tuple(sigmas), held)


def check_table(prompts: Sequence[str], target: Tensor) -> None:
    """Refuse what nothing can be learnt from.

    Raises:
        ValueError: if there is no trajectory, or a score is not finite.
    """
    if not prompts:
        raise ValueError("the table has no trajectories: generate some first")
    wrong = (~target.isfinite()).nonzero().flatten().tolist()
    if wrong:
        raise ValueError(f"the teacher's scores of rows {wrong[:6]} are not finite: leave these trajectories out")


def lessons_sha256(prompts: Sequence[str], target: Tensor) -> str:
    """SHA-256 of who is scored what: two tables of the same have, in all likelihood, the same latents."""
    digest = hashlib.sha256(json.dumps(list(prompts)).encode())
    digest.update(weights_sha256({"target": target}).encode())
    return digest.hexdigest()


def channel_statistics(table: LatentTable, sigmas: Sequence[float], sources: Sequence[Source]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every channel over all trajectories and levels, [k C] float32 each."""
    total, square, number = torch.zeros(1), torch.zeros(1), 0
    for sigma in sigmas:
        for rows in torch.arange(len(table.prompts)).split(1024):
            latents = table.latents(sigma, rows, sources).double().cpu()
            if not bool(latents.isfinite().all()):
                raise ValueError(f"latents at sigma {sigma:g} are not finite: leave these trajectories out")
            total = total + latents.sum(dim=(0, 2, 3))
            square = square + latents.square().sum(dim=(0, 2, 3))
            number += latents.numel() // latents.shape[1]
    mean = total / number
    return mean.float(), (square / number - mean.square()).clamp_min(0).sqrt().float()
