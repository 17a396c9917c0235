"""A cap on what a search may spend while it runs: when it is near, one candidate of each prompt is finished."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from difalign.search.budget import Cost, Price


@dataclass(frozen=True, slots=True)
class Limit:
    """An amount for all prompts together, in the unit of ``price``.

    With a clock what was spent is read from it, and the price only foretells what is still to come: a cap in seconds
    holds as well as the price does. Without one everything is counted, and the cap is never exceeded.
    """

    amount: float
    price: Price
    clock: Callable[[], float] | None = None  # what has been spent so far in the unit, such as seconds since the start

    def allows(self, spent: Cost, *, ahead: Cost) -> bool:
        """Whether ``ahead`` still fits."""
        if self.clock is not None:
            return self.clock() + self.price.of(ahead) <= self.amount
        return self.price.of(spent + ahead) <= self.amount
