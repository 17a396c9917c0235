"""What Stable Diffusion 3 is conditioned on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self, final

import torch
from torch import Tensor


@final
@dataclass(frozen=True, slots=True)
class SD3Condition:
    """Encoded prompts: a table of distinct texts and, for every row, its place in the table."""

    embeds: Tensor  # [U, L, D] token embeddings of the distinct texts
    pooled: Tensor  # [U, P]
    negative_embeds: Tensor  # [1, L, D] of the empty prompt
    negative_pooled: Tensor  # [1, P]
    index: Tensor  # [N] int64, row -> text

    def __len__(self) -> int:
        return self.index.shape[0]

    @property
    def device(self) -> torch.device:
        """Where the embeddings are."""
        return self.embeds.device

    def rows(self, index: Tensor) -> Self:
        """The rows ``index`` ([N] int64), in that order, repeats allowed; embeddings are not copied."""
        return replace(self, index=self.index[index.to(self.index.device)])

    def conditional(self) -> tuple[Tensor, Tensor]:
        """Token and pooled embeddings, [N, L, D] and [N, P]."""
        return self.embeds[self.index], self.pooled[self.index]

    def guided(self) -> tuple[Tensor, Tensor]:
        """The empty prompt N times, then the prompts: [2N, L, D] and [2N, P]."""
        embeds, pooled = self.conditional()
        return (
            torch.cat([self.negative_embeds.expand_as(embeds), embeds]),
            torch.cat([self.negative_pooled.expand_as(pooled), pooled]),
        )
