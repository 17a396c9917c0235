"""Schedules as data: where a search looks at its candidates, and how many it keeps.

A stage names its noise by sigma, which means the same at any number of steps and any resolution, or by the index of a
step of one grid. Resolved against a grid it becomes a ``Check``. Everything below is integer arithmetic: what a search
will cost is known before it starts.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from difalign.core.types import Branch, NoiseGrid, Reading

Rounding = Callable[[Fraction], int]
Reads = Callable[[float, Branch | None], Reading]  # (sigma, branch asked for) -> what the judge is handed


def half_up(value: Fraction) -> int:
    """The nearest integer, halves upwards."""
    return math.floor(value + Fraction(1, 2))


def half_even(value: Fraction) -> int:
    """The nearest integer, halves to the even one, as Python's ``round``."""
    return round(value)


@dataclass(frozen=True, slots=True)
class Stage:
    """A look at the clean estimates of all candidates alive, of which some are kept.

    Raises:
        ValueError: if not exactly one of sigma and step is given, or either or ``keep`` is out of range.
    """

    keep: float | int  # a float in (0, 1] is a share of those alive, an int of at least 1 is a count
    sigma: float | None = None  # the level of the grid that lies nearest
    step: int | None = None  # index of the step whose estimate is looked at, 0 first
    branch: Branch | None = None  # whose estimate; None: what the judge asks for, else the guided one

    def __post_init__(self) -> None:
        if (self.sigma is None) == (self.step is None):
            raise ValueError(f"a stage needs either sigma or step, got sigma={self.sigma} and step={self.step}")
        if self.sigma is not None and not self.sigma > 0:
            raise ValueError(f"a stage's sigma must be above 0, got {self.sigma}: finished samples are scored anyway")
        if self.step is not None and self.step < 0:
            raise ValueError(f"a stage's step must be at least 0, got {self.step}")
        _check_keep(self.keep)


@dataclass(frozen=True, slots=True)
class Check:
    """A stage that stands at one step of a grid."""

    step: int  # the estimate of this step is looked at, after step + 1 evaluations
    sigma: float  # of the level it starts at
    keep: float | int
    reading: Reading = Reading()  # noqa: RUF009  # frozen


def survivors(alive: int, keep: float | int, *, rounding: Rounding = half_up) -> int:
    """How many of ``alive`` candidates are kept: at least 1, at most all.

    A share is taken as the decimal number that it is written as: 0.35 of 10 is three and a half, not a little less.
    """
    kept = keep if isinstance(keep, int) else rounding(Fraction(repr(float(keep))) * alive)
    return max(1, min(kept, alive))


def resolve(stages: Sequence[Stage], grid: NoiseGrid, *, reads: Reads) -> tuple[Check, ...]:
    """The stages on the steps of a grid.

    Args:
        stages: falling in sigma.
        grid: the chain.
        reads: what the judge is handed at a sigma for a branch that is asked for.

    Raises:
        ValueError: if a stage lies outside the grid, the noise does not fall from each to the next, or the judge does
            not score there.
    """
    return _falling(tuple(_placed(stage, grid, reads) for stage in stages))


def alive_by_step(
    candidates: int, checks: Sequence[Check], num_steps: int, *, rounding: Rounding = half_up
) -> tuple[int, ...]:
    """How many candidates each of T steps evaluates, [T]."""
    keeps = {check.step: check.keep for check in checks}
    alive, counts = candidates, []
    for step in range(num_steps):
        counts.append(alive)
        if step in keeps:
            alive = survivors(alive, keeps[step], rounding=rounding)
    return tuple(counts)


def halving(num_steps: int, *, rounds: int, first_step: int, keep: float = 0.5) -> tuple[Stage, ...]:
    """Stages at geometrically spaced steps, each keeping the same share: successive halving.

    The numbers of evaluations after which is looked, ``first_step + 1`` to ``num_steps``, grow by one factor, the
    last being the finished sample, which is no stage. Stages that fall on one step are moved one further.
    Source: Jamieson and Talwalkar, arXiv 1502.07943, with evaluations of the network as the resource.

    Raises:
        ValueError: if there is no room for that many rounds.
    """
    room = num_steps - 1 - first_step
    if rounds < 1 or first_step < 0 or rounds > room:
        raise ValueError(
            f"{rounds} rounds from step {first_step} do not fit into {num_steps} steps; "
            f"ask for 1 to {max(room, 0)} rounds or start earlier"
        )
    growth = (num_steps / (first_step + 1)) ** (1 / rounds)
    steps: list[int] = []
    for i in range(rounds):
        wanted = round((first_step + 1) * growth**i) - 1
        latest = num_steps - 1 - (rounds - i)
        steps.append(min(max(wanted, steps[-1] + 1 if steps else 0), latest))
    return tuple(Stage(keep=keep, step=step) for step in steps)


def _placed(stage: Stage, grid: NoiseGrid, reads: Reads) -> Check:
    levels = grid.sigma[:-1].tolist()
    step = _step(stage, levels)
    return Check(step, levels[step], stage.keep, reads(levels[step], stage.branch))


def _step(stage: Stage, levels: Sequence[float]) -> int:
    if stage.step is not None:
        if stage.step >= len(levels):
            raise ValueError(
                f"a stage at step {stage.step} of a grid of {len(levels)}; steps are 0 to {len(levels) - 1}"
            )
        return stage.step
    assert stage.sigma is not None
    slack = 1e-3  # three decimals are what people write
    if not levels[-1] - slack <= stage.sigma <= levels[0] + slack:
        raise ValueError(
            f"a stage at sigma {stage.sigma:g}, but this grid of {len(levels)} steps has estimates from "
            f"{levels[0]:.4f} to {levels[-1]:.4f}; choose sigma in between or more steps"
        )
    wanted = stage.sigma
    return min(range(len(levels)), key=lambda i: abs(levels[i] - wanted))


def _falling(checks: tuple[Check, ...]) -> tuple[Check, ...]:
    for before, after in itertools.pairwise(checks):
        if after.step <= before.step:
            raise ValueError(
                f"stages must fall in sigma: the one at sigma {before.sigma:.4f} (step {before.step}) is followed by "
                f"one at {after.sigma:.4f} (step {after.step}); reorder them, or drop one where two share a step"
            )
    return checks


def _check_keep(keep: float | int) -> None:
    if isinstance(keep, bool):
        raise ValueError(f"keep must be a share in (0, 1] or a count, got {keep}")
    if isinstance(keep, int):
        if keep < 1:
            raise ValueError(f"keep as a count must be at least 1, got {keep}: somebody has to survive")
    elif not 0.0 < keep <= 1.0:
        raise ValueError(f"keep as a share must lie in (0, 1], got {keep}; a count is written as an integer")
