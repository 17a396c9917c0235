"""From texts to what a network is conditioned on, the same for every family: once a text, alone, without gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import final

import torch
from torch import nn

from difalign.pipelines.prompt_cache import Embedding, Encode, PromptCache, Stack, side_by_side
from difalign.pipelines.text_condition import TextCondition


@final
class PromptEncoder:
    """The frozen text encoders of a pipeline, and what they have said so far.

    Args:
        modules: the encoders.
        encode: one text through them, each tensor [1, ...]; token embeddings come first.
        negative: what guidance points away from, likewise, made by the encoding that it is given, which remembers;
            empty for a family without such a branch.
        stack: how the embeddings of several texts become one table.
    """

    def __init__(
        self,
        modules: Sequence[nn.Module],
        *,
        encode: Encode,
        negative: Callable[[Encode], Embedding],
        stack: Stack = side_by_side,
    ) -> None:
        self.modules = tuple(modules)
        self._encode = encode
        self._negative = negative
        self._stack = stack
        self._cache = PromptCache()
        self._away: Embedding | None = None  # what ``negative`` gave

    def encode(self, prompts: Sequence[str], device: torch.device) -> TextCondition:
        """One row a prompt, on ``device``; a text that was ever seen is not encoded again.

        Raises:
            ValueError: if there are no prompts, or a bare string is passed.
        """
        if isinstance(prompts, str):
            raise ValueError(f"encode takes a list of prompts, got the string {prompts!r}: pass [{prompts!r}]")

        def encode(text: str) -> Embedding:
            return _placed(self._encode(text), device)

        with torch.no_grad():
            if self._away is None:
                self._away = _placed(self._negative(lambda text: self._cache.embed(text, encode)), device)
            table, index = self._cache.table(prompts, encode, stack=self._stack)
        return TextCondition(table, self._away, index.to(device))

    def clear(self) -> None:
        """Forget all embeddings; conditions handed out stay valid."""
        self._cache.clear()
        self._away = None

    def move(self, device: str | torch.device) -> None:
        """Put the encoders elsewhere; encoding goes on there."""
        for module in self.modules:
            module.to(device)


def _placed(texts: Embedding, device: torch.device) -> Embedding:
    return tuple(values.to(device) for values in texts)
