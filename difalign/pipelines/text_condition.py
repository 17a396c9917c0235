"""What a text-to-image network is conditioned on: encoded prompts, gathered by index."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self, final

import torch
from torch import Tensor

from difalign.pipelines.prompt_cache import Embedding


@final
@dataclass(frozen=True, slots=True)
class TextCondition:
    """Encoded prompts: a table of distinct texts and, for every row, its place in the table."""

    table: Embedding  # of the distinct texts, each tensor [U, ...]; token embeddings come first
    negative: Embedding  # of what guidance points away from, each tensor [1, ...]; empty if there is no such branch
    index: Tensor  # [N] int64, row -> text

    def __len__(self) -> int:
        return self.index.shape[0]

    @property
    def device(self) -> torch.device:
        """Where the embeddings are."""
        return self.embeds.device

    @property
    def embeds(self) -> Tensor:
        """Token embeddings of the distinct texts, [U, L, D]."""
        return self.table[0]

    def rows(self, index: Tensor) -> Self:
        """The rows ``index`` ([N] int64), in that order, repeats allowed; embeddings are not copied."""
        return replace(self, index=self.index[index.to(self.index.device)])

    def conditional(self) -> Embedding:
        """The prompts, each tensor [N, ...]."""
        return tuple(values[self.index] for values in self.table)

    def unconditional(self) -> Embedding:
        """The negative N times, each tensor [N, ...]."""
        return tuple(values.expand(len(self), *values.shape[1:]) for values in self.negative)

    def guided(self) -> Embedding:
        """The negative N times, then the prompts, each tensor [2N, ...]."""
        return tuple(torch.cat(branches) for branches in zip(self.unconditional(), self.conditional(), strict=True))
