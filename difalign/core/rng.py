"""Random keys: every row's noise is a pure function of who the row is.

Samples are therefore the same on one process or eight, at any batch size and in any order.
"""

from __future__ import annotations

import hashlib
import operator

import torch

_SEED_BITS = 63  # torch.Generator takes a signed 64-bit seed


def derive_seed(*key: int | str) -> int:
    """A 63-bit seed from any sequence of ints and strings, stable across machines and versions.

    Integers of any library count as the same number: ``numpy.int64(3)`` and a 0-d tensor key like ``3``.

    Raises:
        TypeError: if a part is neither a string nor an integer.
    """
    parts = tuple(part if isinstance(part, str) else operator.index(part) for part in key)
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> (64 - _SEED_BITS)


def generator(*key: int | str) -> torch.Generator:
    """A CPU generator seeded by ``derive_seed(*key)``; noise is drawn on CPU and moved, so devices agree."""
    return torch.Generator().manual_seed(derive_seed(*key))


def row_seed(run_seed: int, prompt: str, seed_index: int, epoch: int) -> int:
    """The seed of one root row: which run, which prompt, which of its seeds, which epoch."""
    return derive_seed("row", run_seed, prompt, seed_index, epoch)
