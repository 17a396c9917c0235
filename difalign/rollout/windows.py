"""Where a sliding noise window starts: small pure functions of the iteration or of a random key."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from difalign.core.rng import generator

Dwell = Callable[[int], int]  # window start -> iterations spent there


def random_start(seed: int, epoch: int, *, low: int, high: int, size: int) -> int:
    """A start drawn uniformly from {low, ..., high - size}, both ends included (Flow-GRPO-Fast).

    It depends on (seed, epoch) alone, so every process draws the same window.

    Raises:
        ValueError: if no window of ``size`` steps fits in [low, high).
    """
    if size < 1 or low < 0 or low + size > high:
        raise ValueError(f"no window of {size} steps fits in [{low}, {high}); lower size or widen the range")
    choices = high - size - low + 1
    return low + int(torch.randint(choices, (), generator=generator("window start", seed, epoch)))


def progressive_start(iteration: int, *, stop: int, dwell: Dwell, stride: int = 1) -> int:
    """The start of a window that moves from the noisiest steps towards the clean ones, then begins again.

    MixGRPO (arXiv 2507.21802, algorithm 1), whose released counter makes its first call with ``iteration`` 1 and has
    ``stop = num_steps - 2``. That code also visits ``start == stop``, where its window holds no step; here the walk
    rolls back to 0 on reaching ``stop``.

    Args:
        iteration: how many rollouts have been counted, at least 0.
        stop: the window never starts here or later; ``clipped_size`` ends it here.
        dwell: iterations spent at a start, see ``constant_dwell``, ``linear_dwell`` and ``exponential_dwell``.
        stride: steps the window moves by: 1 overlaps, the window's size does not.

    Raises:
        ValueError: if any number is out of range or ``dwell`` returns less than 1.
    """
    if iteration < 0 or stop < 1 or stride < 1:
        raise ValueError(
            f"need iteration >= 0, stop >= 1 and stride >= 1, got iteration={iteration}, stop={stop}, stride={stride}"
        )
    starts = range(0, stop, stride)
    lengths = [dwell(start) for start in starts]
    if min(lengths) < 1:
        raise ValueError(f"dwell must give at least 1 iteration a start, got {min(lengths)}")
    remaining = iteration % sum(lengths)
    for start, length in zip(starts, lengths, strict=True):
        if remaining < length:
            return start
        remaining -= length
    raise AssertionError("the remainder is below the sum of the lengths")


def clipped_size(start: int, *, size: int, stop: int) -> int:
    """The window's size after clipping it at ``stop``; at least 1 for every start of ``progressive_start``.

    Raises:
        ValueError: if start is not in [0, stop) or size is below 1.
    """
    if not 0 <= start < stop or size < 1:
        raise ValueError(f"need 0 <= start < stop and size >= 1, got start={start}, stop={stop}, size={size}")
    return min(size, stop - start)


def constant_dwell(iterations: int) -> Dwell:
    """The same number of iterations at every start (MixGRPO's ``progressive``, 25)."""
    return lambda _start: iterations


def linear_dwell(iterations: int, *, stop: int) -> Dwell:
    """From ``iterations`` at start 0 down to ``max(1, iterations // 4)`` at ``stop`` (MixGRPO's ``decay``)."""
    shortest = max(1, iterations // 4)

    def dwell(start: int) -> int:
        progress = min(start / stop, 1.0)
        return int(iterations * (1.0 - progress) + shortest * progress)

    return dwell


def exponential_dwell(iterations: int, *, rate: float = 0.1, after: int = 13) -> Dwell:
    """``ceil(iterations * exp(-rate * max(0, start - after)))`` (MixGRPO's ``exp_decay`` and its constants)."""
    return lambda start: math.ceil(iterations * math.exp(-rate * max(0, start - after)))
