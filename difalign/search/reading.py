"""What the judge of a stage is shown: what it asks for, or the branch that the stage names."""

from __future__ import annotations

from difalign.core.protocols import ReadsEstimates, RewardModel
from difalign.core.types import Branch, Reading


def reading_of(judge: RewardModel, *, sigma: float, branch: Branch | None) -> Reading:
    """What ``judge`` is handed at a stage.

    Args:
        judge: scores the estimates.
        sigma: of the level where the stage stands.
        branch: whose estimate the stage asks for; None leaves it to the judge.

    Raises:
        ValueError: if the judge was made for another branch, or does not score at that noise.
    """
    if not isinstance(judge, ReadsEstimates):
        return Reading() if branch is None else Reading((branch,))
    asked = judge.reading(sigma)
    if branch is not None and asked.sources != (branch,):
        raise ValueError(
            f"the stage at sigma {sigma:.4f} asks for the {branch} branch, but {judge.name} reads "
            f"{' and '.join(asked.sources)} there; leave the branch of the stage out"
        )
    return asked
