"""Prompt embeddings, computed once per distinct text and never in the company of other texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import final

import torch
from torch import Tensor
from torch.nn import functional

Embedding = tuple[Tensor, ...]  # one text, each tensor [1, ...]
Encode = Callable[[str], Embedding]
Stack = Callable[[Sequence[Embedding]], Embedding]  # U texts -> their table, each tensor [U, ...]


def side_by_side(texts: Sequence[Embedding]) -> Embedding:
    """The table of texts whose tensors agree in shape, each [U, ...]."""
    return tuple(torch.cat(column) for column in zip(*texts, strict=True))


def padded(texts: Sequence[Embedding]) -> Embedding:
    """The table of texts of one tensor each, [1, L_i, D], which may differ in length.

    Returns:
        The texts, [U, L, D], and where they differ in length, so that zeros stand at the end of shorter ones, which
        tokens are theirs, [U, L] bool. Where they do not, there is nothing to leave out, and diffusers passes no mask.
    """
    lengths = [tokens.shape[1] for (tokens,) in texts]
    longest = max(lengths)
    table = torch.cat([functional.pad(tokens, (0, 0, 0, longest - tokens.shape[1])) for (tokens,) in texts])
    if min(lengths) == longest:
        return (table,)
    position = torch.arange(longest, device=table.device)
    return table, position < torch.tensor(lengths, device=table.device)[:, None]


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

    def table(self, texts: Sequence[str], encode: Encode, *, stack: Stack = side_by_side) -> tuple[Embedding, Tensor]:
        """The distinct embeddings stacked, each [U, ...], and for every text its row among them, [N] int64.

        Raises:
            ValueError: if there is no text at all.
        """
        if not texts:
            raise ValueError("no prompts to encode: pass at least one")
        row_of = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        distinct = [self.embed(text, encode) for text in row_of]
        return stack(distinct), torch.tensor([row_of[text] for text in texts])
