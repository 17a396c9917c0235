"""What a text-to-image network is conditioned on: encoded prompts, gathered by index."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self, final

import torch
from torch import Tensor

from difalign.pipelines.prompt_cache import Embedding, Encode, PromptCache


@final
@dataclass(frozen=True, slots=True)
class TextCondition:
    """Encoded prompts: a table of distinct texts and, for every row, its place in the table."""

    table: Embedding  # of the distinct texts, each tensor [U, ...]; token embeddings come first
    negative: Embedding  # of what guidance points away from, each tensor [1, ...]
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

    def guided(self) -> Embedding:
        """The negative N times, then the prompts, each tensor [2N, ...]."""
        prompts = self.conditional()
        return tuple(
            torch.cat([negative.expand_as(values), values])
            for negative, values in zip(self.negative, prompts, strict=True)
        )


def encode_prompts(
    cache: PromptCache, prompts: Sequence[str], *, encode: Encode, negative: Embedding, device: torch.device
) -> TextCondition:
    """Encode prompts, one row a prompt; a text that the cache holds is not encoded again.

    Raises:
        ValueError: if there are no prompts, or a bare string is passed.
    """
    if isinstance(prompts, str):
        raise ValueError(f"encode takes a list of prompts, got the string {prompts!r}: pass [{prompts!r}]")
    table, index = cache.table(prompts, encode)
    return TextCondition(table, negative, index.to(device))
