"""The rewards of a run: what each is multiplied by, in which unit it counts, and what becomes of a failure.

Sources: GDPO = normalisation of every reward in its group (arXiv 2601.05242); own = chosen here.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from difalign.core.config_fields import FileName, Number, PlainName, Positive, Section

OptionValue = str | int | float | bool | None
OnError = Literal["raise", "drop"]
ScaleKind = Literal["none", "fixed", "running", "rank", "group"]


class ScaleConfig(Section):
    """The unit in which a reward is weighted."""

    # none: as it is; fixed: (r - mean) / std with constants; running: likewise with all scores of the run so far;
    # rank: its place among the samples of the prompt, from 0 to 1; group: an advantage of its own, and the advantages
    # are weighted (GDPO).
    kind: ScaleKind = "none"  # what published trainers do
    constants: PlainName | None = None  # fixed: a name of the card's `scales`; null = the card's `statistics`
    mean: Number | None = None  # fixed: by hand, with std
    std: Positive | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [key for key in ("constants", "mean", "std") if getattr(self, key) is not None]
        if given and self.kind != "fixed":
            raise ValueError(f"{', '.join(given)}: are used only with kind: fixed; remove them, or use kind: fixed")
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean, std: give both or neither")
        if self.constants is not None and self.mean is not None:
            raise ValueError("constants, mean: give either a name of the card's scales, or mean and std")
        return self


class GateConfig(Section):
    """A condition on the raw score; a sample that fails it has ``otherwise`` as its whole reward."""

    at_least: Number
    otherwise: Number = 0.0  # own


class RewardConfig(Section):
    """One term of the reward."""

    card: FileName | None = None  # a card's name or path; null = the name of this entry
    weight: Number = 1.0  # rewards are summed with these weights
    options: dict[str, OptionValue] = Field(default_factory=dict)  # arguments of the card's target
    scale: ScaleConfig = ScaleConfig()
    gate: GateConfig | None = None  # with weight: 0 the reward is nothing but a gate
    # raise: a sample that cannot be scored ends the run; drop: it is left out of the comparison and of the loss.
    on_error: OnError | None = None  # own: never a number in its place; null = the card's
    retries: Annotated[int, Field(ge=0)] = 0  # own: how often samples that could not be scored are asked again
    device: FileName | None = None  # such as cpu or cuda:1; null = the run's
    offload: bool = False  # own: whether its weights wait in main memory between two scorings
