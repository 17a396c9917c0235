"""Choosing a schedule by what it would have found: replayed on recorded scores of many candidates at many levels.

Record once: the score of every candidate's clean estimate at some steps, and of its finished sample. Any schedule over
these steps can then be played without a network. Choose on some prompts and report on others: the best of many
schedules looks better than it is on the prompts it was chosen on.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from difalign.core.rng import generator
from difalign.core.types import Reading
from difalign.search.budget import Price, Walk, forecast, largest
from difalign.search.schedule import Check, survivors


@dataclass(frozen=True, slots=True)
class Recording:
    """Scores of C candidates of P prompts.

    Raises:
        ValueError: if the shapes do not agree, the steps do not rise, or a score is not finite.
    """

    steps: tuple[int, ...]  # [L] at which estimates were judged, rising
    sigmas: tuple[float, ...]  # [L]
    on_way: Tensor  # [P, C, L] float32
    final: Tensor  # [P, C] float32, finished samples by the reward for clean pictures
    num_steps: int  # T
    readings: tuple[Reading, ...] | None = None  # [L] what the judge was handed; None: decoded estimates

    def __post_init__(self) -> None:
        levels = len(self.steps)
        if self.on_way.shape != (*self.final.shape, levels) or self.final.dim() != 2 or len(self.sigmas) != levels:
            raise ValueError(
                f"a recording needs on_way [P, C, {levels}] and final [P, C], "
                f"got {list(self.on_way.shape)} and {list(self.final.shape)} with {len(self.sigmas)} sigmas"
            )
        if list(self.steps) != sorted(set(self.steps)) or (
            levels and not 0 <= self.steps[0] <= self.steps[-1] < self.num_steps
        ):
            raise ValueError(f"steps must rise within 0 to {self.num_steps - 1}, got {self.steps}")
        if not bool(self.on_way.isfinite().all() and self.final.isfinite().all()):
            raise ValueError("a recording must hold finite scores only; drop the prompts that have others")

    def prompts(self, rows: Sequence[int]) -> Recording:
        """The recording of some prompts."""
        chosen = list(rows)
        return replace(self, on_way=self.on_way[chosen], final=self.final[chosen])


@dataclass(frozen=True, slots=True)
class Rated:
    """A schedule at a budget, and what it finds."""

    checks: tuple[Check, ...]
    candidates: int
    tuned: float  # mean final reward on the prompts it was chosen on
    reported: Tensor  # [P'] mean final reward of each of the other prompts

    @property
    def mean(self) -> float:
        """Over the prompts that had no say in the choice."""
        return float(self.reported.mean())


def replay(recording: Recording, checks: Sequence[Check], chosen: Tensor) -> Tensor:
    """The final reward of the winner among candidates ``chosen`` [P, N], [P]; ties go to the lower index.

    Raises:
        ValueError: if a check stands at a step that was not recorded.
    """
    alive = chosen.sort(dim=1).values
    for check in checks:
        if check.step not in recording.steps:
            raise ValueError(f"step {check.step} was not recorded; recorded are {recording.steps}")
        level = recording.on_way[:, :, recording.steps.index(check.step)]
        order = level.gather(1, alive).sort(dim=1, descending=True, stable=True).indices
        kept = order[:, : survivors(alive.shape[1], check.keep)]
        alive = alive.gather(1, kept).sort(dim=1).values
    return recording.final.gather(1, alive).max(dim=1).values


def expected(recording: Recording, checks: Sequence[Check], candidates: int, *, draws: int, seed: int) -> Tensor:
    """Mean final reward of each prompt [P] over random choices of N of its candidates, drawn for each prompt alone.

    The same draws for every schedule, so that schedules are compared in pairs. With N = C there is one choice.

    Raises:
        ValueError: if fewer candidates were recorded, or there is no draw.
    """
    prompts, recorded = recording.final.shape
    if not 1 <= candidates <= recorded or draws < 1:
        raise ValueError(f"cannot draw {draws} times {candidates} of {recorded} recorded candidates")
    total = torch.zeros(prompts, dtype=torch.float64)
    draws = 1 if candidates == recorded else draws
    for draw in range(draws):
        keys = torch.rand(prompts, recorded, generator=generator("replay", seed, draw))
        total += replay(recording, checks, keys.argsort(dim=1)[:, :candidates]).double()
    return total / draws


def schedules(recording: Recording, *, keeps: Sequence[float], max_stages: int) -> Iterator[tuple[Check, ...]]:
    """Every schedule of up to ``max_stages`` recorded levels with these shares; the first is best-of-N."""
    for count in range(max_stages + 1):
        for levels in itertools.combinations(range(len(recording.steps)), count):
            for shares in itertools.product(keeps, repeat=count):
                places = zip(levels, shares, strict=True)
                yield tuple(Check(recording.steps[i], recording.sigmas[i], keep) for i, keep in places)


def optimise(
    recording: Recording,
    *,
    budget: float,
    tune_on: Sequence[int],
    keeps: Sequence[float] = (0.25, 0.4, 0.5, 0.6),
    max_stages: int = 2,
    price: Price | None = None,
    branches: int = 1,
    draws: int = 16,
    seed: int = 0,
) -> Rated:
    """The schedule with the highest expected final reward at a budget on some prompts, reported on the others.

    Every schedule starts as many candidates as the budget pays for. Schedules that the budget does not pay for at
    all, or that would start more than were recorded, are left out.

    Args:
        recording: scores of P prompts.
        budget: of one prompt, in the unit of ``price``.
        tune_on: prompts that choose; the result is reported on all others.
        keeps: shares to try at every stage.
        max_stages: the most stages to try.
        price: of a row; None counts evaluations.
        branches: evaluations of the network a row, 2 under classifier-free guidance.
        draws: random choices of candidates that a mean is taken over.
        seed: of these.

    Raises:
        ValueError: if no prompt is left to choose or to report, or no schedule can be played.
    """
    others = [row for row in range(recording.final.shape[0]) if row not in set(tune_on)]
    if not tune_on or not others:
        raise ValueError(
            f"of {recording.final.shape[0]} prompts {len(tune_on)} choose and {len(others)} are left; need both"
        )
    price, tuning = price or Price(), recording.prompts(tune_on)
    best: tuple[float, tuple[Check, ...], int] | None = None
    for checks in schedules(recording, keeps=keeps, max_stages=max_stages):
        walk = Walk(checks, recording.num_steps, branches)
        if price.of(forecast(1, walk).cost) > budget:
            continue
        candidates = largest(budget, walk, price=price)
        if candidates > recording.final.shape[1]:
            continue
        mean = float(expected(tuning, checks, candidates, draws=draws, seed=seed).mean())
        if best is None or mean > best[0]:
            best = mean, checks, candidates
    if best is None:
        raise ValueError(
            f"no schedule can be played at a budget of {budget:g} with {recording.final.shape[1]} recorded candidates; "
            "change the budget or record more"
        )
    mean, checks, candidates = best
    reported = expected(recording.prompts(others), checks, candidates, draws=draws, seed=seed)
    return Rated(checks, candidates, mean, reported)
