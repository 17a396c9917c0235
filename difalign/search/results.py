"""What a search leaves behind, prompt by prompt: every look, the finished samples, the winner and the cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from difalign.search.budget import Cost


@dataclass(frozen=True, slots=True)
class Look:
    """One stage of one prompt. Its scores are comparable with one another and with no others."""

    step: int
    sigma: float | None  # None: finished samples, judged as clean pictures
    index: tuple[int, ...]  # [A] candidates that were alive
    scores: tuple[float, ...]  # [A], NaN where there is none
    components: Mapping[str, tuple[float, ...]]  # name -> [A]
    errors: Mapping[int, str]  # candidate -> why it has no score
    kept: tuple[int, ...]  # candidates that went on, the best first
    pictures: Tensor | None = None  # [A, C, H, W] uint8 on CPU, if kept


@dataclass(frozen=True, slots=True)
class Found:
    """The search of one prompt."""

    prompt: str
    seeds: tuple[int, ...]  # [N] of all candidates
    looks: tuple[Look, ...]  # on the way
    finish: Look  # of finished samples; ``kept`` is the winner alone, or empty
    latents: Tensor  # [F, *latent] float32 on CPU, the finished samples in the order of ``finish.index``
    winner: int | None  # index of the candidate; None where no finished sample could be scored
    picture: Tensor | None  # [C, H, W] uint8 on CPU, of the winner

    @property
    def score(self) -> float | None:
        """Of the winner, by the reward for clean pictures."""
        return None if self.winner is None else self.finish.scores[self.finish.index.index(self.winner)]


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The search of several prompts."""

    found: tuple[Found, ...]  # one a prompt, in the order given
    cost: Cost  # counted
    planned: Cost  # forecast; more than ``cost`` only where a limit cut the search short
    cut_short: bool  # whether a limit did
