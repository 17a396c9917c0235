"""The rewards of every prompt in the last rollouts, as a baseline for those of this one."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import final

import torch

from difalign.objective.advantages import Moments, moments

StageRewards = Mapping[str, Sequence[float]]  # prompt -> its rewards in one rollout


@final
class StageHistory:
    """B2-DiffuRL's statistics per prompt (arXiv 2503.11240): the rewards of this stage and of the last few before it.

    As in the released code this stage's rewards are part of their own mean, a stage counts whether or not the prompt
    was drawn in it, and what is forgotten is a whole stage at a time.
    """

    def __init__(self, *, stages: int = 8) -> None:
        """Keep ``stages`` stages beside the newest; 8 in the released code.

        Raises:
            ValueError: if ``stages`` is negative.
        """
        if stages < 0:
            raise ValueError(f"stages must be at least 0, got {stages}")
        self._stages: deque[dict[str, list[float]]] = deque(maxlen=stages + 1)

    def add(self, rewards: StageRewards) -> None:
        """The rewards of one more stage; the oldest stage is forgotten if there are too many."""
        self._stages.append({prompt: list(values) for prompt, values in rewards.items()})

    def measure(self, prompt: str, *, ddof: int = 1) -> Moments:
        """The moments of all that is kept of a prompt.

        Raises:
            ValueError: if nothing is kept of it.
        """
        kept = [value for stage in self._stages for value in stage.get(prompt, ())]
        return moments(torch.tensor(kept, dtype=torch.float64), ddof=ddof)

    @property
    def rewards(self) -> list[dict[str, list[float]]]:
        """Everything kept, a mapping a stage, oldest first: what ``restore`` takes."""
        return [{prompt: list(values) for prompt, values in stage.items()} for stage in self._stages]

    def restore(self, rewards: Sequence[StageRewards]) -> None:
        """Forget everything and begin with ``rewards``; of more stages the newest stay."""
        self._stages.clear()
        for stage in rewards:
            self.add(stage)
