"""The embedded verifier as a reward: exact, fast, for the scene grammar of the shipped tiny models only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from difalign.core.types import Metadata, RewardOutput
from difalign.reward_models.media_check import refuse_gradient


@dataclass(frozen=True, slots=True)
class VerifierReward:
    """``strict_share * strict + (1 - strict_share) * partial``, in [0, 1].

    Strict correctness alone leaves hard prompts with groups of equal rewards, from which nothing can be learnt;
    partial credit alone saturates before everything is right.
    """

    strict_share: float = 0.5
    name: str = "verifier"
    differentiable: bool = False

    def __post_init__(self) -> None:
        if not 0.0 <= self.strict_share <= 1.0:
            raise ValueError(f"strict_share is {self.strict_share}; give a share between 0 and 1")

    def score(
        self, media: Tensor, prompts: Sequence[str], *, metadata: Metadata | None = None, sigma: float | None = None
    ) -> RewardOutput:
        """Score images [N, 3, H, W] in [0, 1] against captions of the scene grammar.

        The verifier reads pixels as they are; ``sigma`` is accepted for estimates on the way and not used.

        Raises:
            ValueError: for a caption outside the grammar, media of another layout, or where a gradient is asked for.
        """
        refuse_gradient(media, reader=self.name)
        from difalign.embedded.verifier import verify  # scipy stays out of start-up

        scores = verify(media.detach().float().cpu().numpy(), prompts)
        strict, partial = torch.from_numpy(scores.strict), torch.from_numpy(scores.partial)
        total = self.strict_share * strict + (1.0 - self.strict_share) * partial
        return RewardOutput(total, {"strict": strict, "partial": partial})
