"""Ranking rules: who of the candidates alive comes first. Scores are compared within one look only.

Policy, the same for every rule: equal candidates are ordered by their index, the lower first; a candidate without a
score (NaN) comes after all that have one, so it survives a look only where there are too few others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from difalign.core.rng import derive_seed


@dataclass(frozen=True, slots=True)
class Judged:
    """The candidates of one prompt at one look, all at one level of noise."""

    index: tuple[int, ...]  # [A]
    seeds: tuple[int, ...]  # [A]
    scores: tuple[float, ...]  # [A], NaN where there is none; all NaN if nothing was scored
    components: Mapping[str, Sequence[float]] = field(default_factory=dict)  # name -> [A]


Ranking = Callable[[Judged], list[int]]  # positions [A], best first


def by_score(judged: Judged) -> list[int]:
    """The highest score first."""
    return _ordered(judged, judged.scores)


def at_random(judged: Judged) -> list[int]:
    """An order drawn by each candidate's own seed: the control that costs no look. It reads no score."""
    return sorted(
        range(len(judged.index)), key=lambda i: (derive_seed("random order", judged.seeds[i]), judged.index[i])
    )


def rank_sum(weights: Mapping[str, float]) -> Ranking:
    """The rule that adds up the weighted ranks in several components, so that their units do not matter.

    The worst has rank 0; equal ones share the mean of their ranks. A candidate that lacks one of the components has
    no sum. Source: the multi-reward search of TTSnap (arXiv 2511.22242) as released, which breaks ties arbitrarily.

    Args:
        weights: component -> weight above 0; components are named as in ``RewardOutput.components``.

    Raises:
        ValueError: if there is no component or a weight is not above 0; the rule itself, if a component is missing.
    """
    if not weights or not all(math.isfinite(weight) and weight > 0 for weight in weights.values()):
        raise ValueError(f"rank_sum needs components with weights above 0, got {dict(weights)}")

    def rule(judged: Judged) -> list[int]:
        missing = [name for name in weights if name not in judged.components]
        if missing:
            raise ValueError(
                f"rank_sum of {', '.join(missing)}: the reward has no such component; "
                f"it has: {', '.join(judged.components) or 'none'}"
            )
        objectives = [(weight, judged.components[name]) for name, weight in weights.items()]
        whole = [not any(math.isnan(values[i]) for _, values in objectives) for i in range(len(judged.index))]
        ranks = [
            (weight, _ranks([v for v, ok in zip(values, whole, strict=True) if ok])) for weight, values in objectives
        ]
        sums = iter([math.fsum(weight * of[i] for weight, of in ranks) for i in range(sum(whole))])
        return _ordered(judged, [next(sums) if ok else math.nan for ok in whole])

    return rule


def _ranks(values: Sequence[float]) -> list[float]:
    """Ranks from 0, the worst; equal values share the mean of theirs."""
    ordered = sorted(values)
    first = {value: i for i, value in reversed(list(enumerate(ordered)))}
    last = {value: i for i, value in enumerate(ordered)}
    return [(first[value] + last[value]) / 2 for value in values]


def _ordered(judged: Judged, values: Sequence[float]) -> list[int]:
    def key(i: int) -> tuple[bool, float, int]:
        absent = math.isnan(values[i])
        return absent, 0.0 if absent else -values[i], judged.index[i]

    return sorted(range(len(judged.index)), key=key)
