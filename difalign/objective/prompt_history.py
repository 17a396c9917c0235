"""The rewards of every prompt so far, as a baseline for its next ones."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import final

import torch

from difalign.objective.advantages import Moments, moments


@final
class PromptHistory:
    """The last rewards of every prompt: DDPO's statistics per prompt (arXiv 2305.13301).

    A prompt that is easy does not push up what is done for hard ones, without several samples of it in one rollout. As
    in the released code the rewards of a rollout are added first and then measured, so they are part of their own mean;
    a prompt with few rewards is measured against all rewards of the rollout.

    Which reward leaves first depends on the order of ``add``: give every process the rewards of all of them in one
    order, and all hold the same.
    """

    def __init__(self, *, buffer_size: int = 16, min_count: int = 16) -> None:
        """Keep at most ``buffer_size`` rewards a prompt, and use them from ``min_count`` on.

        The released configurations have 16 and 16, or 32 and 16 for aesthetic quality and prompt alignment.

        Raises:
            ValueError: if ``min_count`` is below 2, or can never be reached.
        """
        if not 2 <= min_count <= buffer_size:
            raise ValueError(
                f"min_count must lie in [2, buffer_size = {buffer_size}], got {min_count}: one reward has no spread, "
                "and no more than buffer_size are kept"
            )
        self._buffer_size = buffer_size
        self._min_count = min_count
        self._rewards: dict[str, deque[float]] = {}

    def add(self, prompt: str, rewards: Sequence[float]) -> None:
        """Append rewards, oldest first; what no longer fits is forgotten."""
        self._rewards.setdefault(prompt, deque(maxlen=self._buffer_size)).extend(rewards)

    def measure(self, prompt: str, *, otherwise: Moments, ddof: int = 0) -> Moments:
        """The moments of a prompt's last rewards, or ``otherwise`` as long as there are fewer than ``min_count``."""
        rewards = self._rewards.get(prompt, ())
        if len(rewards) < self._min_count:
            return otherwise
        return moments(torch.tensor(list(rewards), dtype=torch.float64), ddof=ddof)

    @property
    def rewards(self) -> dict[str, list[float]]:
        """Everything kept, oldest first: what ``restore`` takes."""
        return {prompt: list(kept) for prompt, kept in self._rewards.items()}

    def restore(self, rewards: Mapping[str, Sequence[float]]) -> None:
        """Forget everything and begin with ``rewards``; of longer lists the newest stay."""
        self._rewards = {prompt: deque(kept, maxlen=self._buffer_size) for prompt, kept in rewards.items()}
