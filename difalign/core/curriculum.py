"""How many of the last steps of the chain are trained on at each stage: schedules that grow backwards from the end.

Near the end of the chain a sample's reward depends on little that is still to come, so that a policy learns its last
steps first; the interval then grows towards the noise. B2-DiffuRL (Hu et al., CVPR 2025, arXiv 2503.11240) calls this
backward progressive training. Lengths are counts of steps: a chain of T steps trains steps T - s to T - 1.
"""

from __future__ import annotations

from collections.abc import Sequence


def linear_floor(stage: int, *, first: int, last: int, stages: int) -> int:
    """first + floor(stage (last - first + 1) / stages): every length has as many stages, or one more.

    The released script of B2-DiffuRL: 14 to 20 in 100 stages are 15, 14, 14, 15, 14, 14 and 14 stages long. Later
    stages keep ``last``.
    """
    return first + min(stage, stages - 1) * (last - first + 1) // stages


def linear_round(stage: int, *, first: int, last: int, stages: int) -> int:
    """first + stage (last - first) / (stages - 1), rounded half to even: ends have half as many stages as the rest."""
    if stages == 1:
        return first
    return round(first + min(stage, stages - 1) / (stages - 1) * (last - first))


def cyclic(stage: int, *, first: int, last: int, stages: int) -> int:
    """``linear_floor``, begun again after every ``stages`` stages."""
    return linear_floor(stage % stages, first=first, last=last, stages=stages)


def listed(stage: int, lengths: Sequence[int]) -> int:
    """One length a stage; later stages keep the last of them."""
    return lengths[min(stage, len(lengths) - 1)]
