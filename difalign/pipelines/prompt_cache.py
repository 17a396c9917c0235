"""Prompt embeddings, computed once per distinct text and never in the company of other texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import final

import torch
from torch import Tensor

Embedding = tuple[Tensor, ...]  # one text, each tensor [1, ...]
Encode = Callable[[str], Embedding]


@final
class PromptCache:
    """Embeddings by text.

    Every text is encoded alone. Matrix kernels may round differently at another batch size, so encoding in
    batches would make an embedding depend on which texts stand beside it, and with it every sample made from it.
    """

    def __init__(self) -> None:
        self._known: dict[str, Embedding] = {}

    def __len__(self) -> int:
        """How many distinct texts are held."""
        return len(self._known)

    def clear(self) -> None:
        """Forget every embedding, as is needed after the encoders change."""
        self._known.clear()

    def embed(self, text: str, encode: Encode) -> Embedding:
        """The embedding of one text, encoded now if it was not before."""
        if text not in self._known:
            self._known[text] = encode(text)
        return self._known[text]

    def table(self, texts: Sequence[str], encode: Encode) -> tuple[Embedding, Tensor]:
        """The distinct embeddings stacked, each [U, ...], and for every text its row among them, [N] int64.

        Raises:
            ValueError: if there is no text at all.
        """
        if not texts:
            raise ValueError("no prompts to encode: pass at least one")
        row_of = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        columns = zip(*(self.embed(text, encode) for text in row_of), strict=True)
        return tuple(torch.cat(column) for column in columns), torch.tensor([row_of[text] for text in texts])
