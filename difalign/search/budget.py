"""What a search costs: counted before it runs, in network evaluations, decodes and scores, and priced in any unit.

The clean estimate of step s costs s + 1 evaluations from noise, a finished sample T. Classifier-free guidance evaluates
the network twice a row. A candidate is decoded and scored at every check it reaches, and at the end; a judge that reads
latents saves the decode.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass, replace
from fractions import Fraction
from types import MappingProxyType
from typing import Literal

from difalign.search.schedule import Check, Rounding, alive_by_step, half_even, half_up, survivors

Unit = Literal["nfe", "tflops", "seconds"]


@dataclass(frozen=True, slots=True)
class Cost:
    """What was, or will be, computed."""

    nfe: int = 0  # rows through the network, both branches of guidance counted
    decodes: int = 0  # rows through the decoder
    scores: int = 0  # rows through any reward
    previews: int = 0  # how many of these went through the judge of estimates

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def times(self, count: int) -> Cost:
        """The same ``count`` times."""
        return Cost(*(amount * count for amount in astuple(self)))


@dataclass(frozen=True, slots=True)
class Price:
    """What one row costs, in one unit.

    Raises:
        ValueError: if a price is negative or not finite, or evaluations are free.
    """

    nfe: float = 1.0  # a row through the network; by default the unit is the evaluation itself
    decode: float = 0.0
    score: float = 0.0
    preview: float | None = None  # a score by the judge of estimates; None: as much as any score

    def __post_init__(self) -> None:
        given = (self.nfe, self.decode, self.score, self.score if self.preview is None else self.preview)
        if not all(math.isfinite(value) and value >= 0 for value in given):
            raise ValueError(f"prices must be finite and at least 0, got {self}")
        if self.nfe == 0:
            raise ValueError("an evaluation of the network must cost something: give nfe a price above 0")

    def of(self, cost: Cost) -> float:
        """The cost in this unit; exact until it is rounded once."""
        return float(self.exactly(cost))

    def exactly(self, cost: Cost) -> Fraction:
        """The cost in this unit, prices taken as the decimals that they are written as."""
        nfe, decode, score = (_decimal(value) for value in (self.nfe, self.decode, self.score))
        preview = score if self.preview is None else _decimal(self.preview)
        return cost.nfe * nfe + cost.decodes * decode + (cost.scores - cost.previews) * score + cost.previews * preview


@dataclass(frozen=True, slots=True)
class Walk:
    """What of a search of one prompt decides its cost, but the number of candidates."""

    checks: tuple[Check, ...]
    num_steps: int  # T
    branches: int = 1  # evaluations a row: 2 under classifier-free guidance
    scored: bool = True  # whether checks look at scores; where they do not, nothing is decoded at them
    rounding: Rounding = half_up

    def __post_init__(self) -> None:
        if self.num_steps < 1 or self.branches < 1:
            raise ValueError(f"num_steps and branches must be at least 1, got {self.num_steps} and {self.branches}")


@dataclass(frozen=True, slots=True)
class Forecast:
    """A search of one prompt before it runs."""

    candidates: int
    alive: tuple[int, ...]  # [T] rows that each step evaluates
    finished: int  # samples that are walked to the end and scored by the final reward
    cost: Cost


def forecast(candidates: int, walk: Walk) -> Forecast:
    """Count a search of one prompt; what runs costs exactly this.

    Raises:
        ValueError: if there is no candidate.
    """
    if candidates < 1:
        raise ValueError(f"a search needs at least 1 candidate, got {candidates}")
    alive = alive_by_step(candidates, walk.checks, walk.num_steps, rounding=walk.rounding)
    looks = {check: alive[check.step] for check in walk.checks} if walk.scored else {}
    looked_at = sum(looks.values())
    decoded = sum(rows for check, rows in looks.items() if check.reading.decoded)
    finished = alive[-1]
    if walk.checks and walk.checks[-1].step == walk.num_steps - 1:
        finished = survivors(finished, walk.checks[-1].keep, rounding=walk.rounding)
    cost = Cost(sum(alive) * walk.branches, decoded + finished, looked_at + finished, looked_at)
    return Forecast(candidates, alive, finished, cost)


def largest(budget: float, walk: Walk, *, price: Price) -> int:
    """The most candidates of a prompt that a budget pays for: cost(N) <= budget < cost(N + 1), roundings charged.

    Args:
        budget: for one prompt, in the unit of ``price``.
        walk: the search.
        price: of a row.

    Raises:
        ValueError: if the budget is not a finite number above 0, or does not pay for one candidate; the least that
            does is named.
    """
    bound = _as_amount(budget)

    def fits(candidates: int) -> bool:
        return price.exactly(forecast(candidates, walk).cost) <= bound

    if not fits(1):
        _refuse(budget, price.exactly(forecast(1, walk).cost))
    high = 2
    while fits(high):
        high *= 2
    low = high // 2  # fits; high does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def published_rate(walk: Walk, *, price: Price) -> float:
    """What the simulator released with TTSnap (arXiv 2511.22242) takes a candidate to cost.

    ``sum_k A_{k-1} ((s_k - s_{k-1}) x + y) + A_K ((T - 1 - s_K) x + y)`` with A_k the product of the shares kept and
    s_0 = 0: step indices stand for numbers of evaluations, which gives every candidate one for nothing, and survivors
    are not rounded. Without stages it takes ``T x + y``. A look, y, is a decode and a score.

    Raises:
        ValueError: if a stage keeps a count: the formula knows shares only.
    """
    return float(_published_rate(walk, price))


def published_largest(budget: float, walk: Walk, *, price: Price) -> int:
    """The number of candidates that the released simulator of TTSnap starts: budget over ``published_rate``, floored.

    What that really costs is above the budget; see ``forecast``.

    Raises:
        ValueError: if the budget does not pay for one candidate by that count, or a stage keeps a count.
    """
    rate = _published_rate(walk, price)
    candidates = math.floor(_as_amount(budget) / rate)
    if candidates < 1:
        _refuse(budget, rate)
    return candidates


@dataclass(frozen=True, slots=True)
class Accounting:
    """How a budget becomes a number of candidates, and shares of them a count."""

    largest: Callable[..., int]  # (budget, walk, *, price) -> candidates
    rounding: Rounding | None  # None: the walk's own


ACCOUNTINGS: Mapping[str, Accounting] = MappingProxyType(
    {
        "exact": Accounting(largest, None),
        "published": Accounting(published_largest, half_even),  # for reproduction only
    }
)


@dataclass(frozen=True, slots=True)
class Budget:
    """What a search of one prompt may use: exactly one of these.

    Raises:
        ValueError: if none or several are given.
    """

    candidates: int | None = None
    nfe: float | None = None
    tflops: float | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        given = [f"{name} = {value:g}" for name, value in self._amounts().items() if value is not None]
        if len(given) != 1:
            raise ValueError(
                f"give exactly one budget of candidates, nfe, tflops and seconds, got {', '.join(given) or 'none'}"
            )
        if self.candidates is not None and self.candidates < 1:
            raise ValueError(f"a search needs at least 1 candidate, got {self.candidates}")

    @property
    def unit(self) -> Unit | None:
        """What the budget is counted in; None where the number of candidates itself is given."""
        units: tuple[Unit, ...] = ("nfe", "tflops", "seconds")
        return next((unit for unit in units if self._amounts()[unit] is not None), None)

    def plan(self, walk: Walk, *, prices: Mapping[Unit, Price] | None = None, accounting: str = "exact") -> Forecast:
        """The most candidates that the budget pays for, and what they really cost.

        Args:
            walk: the search; the published accounting brings its own rounding, which the method that is run must share.
            prices: of a row in each unit; an evaluation costs 1 nfe, and a decode and a score none, unless said.
            accounting: "exact", or "published" for the count of TTSnap's released simulator.

        Raises:
            ValueError: for an unknown accounting, a unit without a price, or a budget below one candidate.
        """
        if accounting not in ACCOUNTINGS:
            raise ValueError(f"accounting {accounting!r} is not known; use one of: {', '.join(ACCOUNTINGS)}")
        rules = ACCOUNTINGS[accounting]
        walk = replace(walk, rounding=rules.rounding or walk.rounding)
        unit = self.unit
        if unit is None:
            assert self.candidates is not None
            return forecast(self.candidates, walk)
        known: dict[Unit, Price] = {"nfe": Price(), **(prices or {})}
        if unit not in known:
            raise ValueError(f"a budget in {unit} needs the price of a row in {unit}; measure it first")
        amount = self._amounts()[unit]
        assert amount is not None
        return forecast(rules.largest(amount, walk, price=known[unit]), walk)

    def _amounts(self) -> dict[str, float | None]:
        return {"candidates": self.candidates, "nfe": self.nfe, "tflops": self.tflops, "seconds": self.seconds}


def _as_amount(budget: float) -> Fraction:
    if not (math.isfinite(budget) and budget > 0):
        raise ValueError(f"a budget must be a finite number above 0, got {budget}")
    return _decimal(budget)


def _refuse(budget: float, least: Fraction) -> None:
    named = float(least)
    if _decimal(named) < least:  # what is named has to work
        named = math.nextafter(named, math.inf)
    raise ValueError(f"a budget of {budget:g} is below one candidate, which costs {named!r}; give at least {named!r}")


def _decimal(value: float) -> Fraction:
    """The number that a float is written as."""
    return Fraction(repr(float(value)))


def _published_rate(walk: Walk, price: Price) -> Fraction:
    look, evaluation = price.exactly(Cost(0, 1, 1)), price.exactly(Cost(walk.branches))
    if not walk.checks:
        return walk.num_steps * evaluation + look
    total, kept, before = Fraction(0), Fraction(1), 0
    for check in walk.checks:
        if isinstance(check.keep, int):
            raise ValueError(f"the published accounting knows shares only, and a stage keeps {check.keep} candidates")
        total += kept * ((check.step - before) * evaluation + look)
        kept, before = kept * _decimal(check.keep), check.step
    return total + kept * ((walk.num_steps - 1 - before) * evaluation + look)
