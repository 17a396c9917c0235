"""What a scorer makes of a prompt, kept: a prompt shared by many samples and rollouts is read once."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar, final

_T = TypeVar("_T")
_KEPT = 4096  # prompts; of embeddings of a thousand numbers, 16 MB


@final
class TextCache(Generic[_T]):
    """Readings by prompt, the least recently used forgotten first.

    Every prompt is read alone. Matrix kernels may round differently at another batch size, so reading in batches would
    make a score depend on which prompts came with it when it was first met, and a resumed run on where it was cut.
    """

    def __init__(self, read: Callable[[str], _T], *, size: int = _KEPT) -> None:
        if size < 1:
            raise ValueError(f"size = {size}: a cache holds at least 1 prompt")
        self._read = read
        self._size = size
        self._known: OrderedDict[str, _T] = OrderedDict()

    def __len__(self) -> int:
        """How many prompts are held."""
        return len(self._known)

    def readings(self, prompts: Sequence[str], *, keep: bool = True) -> list[_T]:
        """One reading a prompt, in their order; without ``keep``, as for weights in training, all are read anew."""
        read = self._reading if keep else self._read
        found = {prompt: read(prompt) for prompt in dict.fromkeys(prompts)}
        return [found[prompt] for prompt in prompts]

    def _reading(self, prompt: str) -> _T:
        if prompt not in self._known:
            self._known[prompt] = self._read(prompt)
            if len(self._known) > self._size:
                self._known.popitem(last=False)
        self._known.move_to_end(prompt)
        return self._known[prompt]


@final
class LengthLimit:
    """Says once that prompts are longer than a scorer reads."""

    def __init__(self, longest: int, *, reader: str) -> None:
        self.longest = longest
        self._reader = reader
        self._said = False

    def note(self, prompt: str, length: int) -> None:
        """Warn if ``length`` tokens, begin and end among them, are too many; later ones are cut without a word."""
        if length > self.longest and not self._said:
            self._said = True
            warnings.warn(
                f"{self._reader} reads {self.longest} tokens of a prompt, and {prompt[:60]!r}... has {length}: the "
                "rest is cut off, here and in other long prompts, as the original does",
                stacklevel=2,
            )
