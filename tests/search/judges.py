"""Rewards of toy latents, and a guided toy: what searches are tested with."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from difalign.core.protocols import Condition
from difalign.core.types import Branches, Metadata, Reading, RewardOutput, Source
from tests.toys import ToyPipeline


@dataclass
class Linear:
    """The mean of the latent, row by row to the last bit; remembers every question."""

    name: str = "linear"
    differentiable: bool = True
    sigmas: list[float | None] = field(default_factory=list)  # one a call
    rows: int = 0

    def score(
        self, media: Tensor, prompts: Sequence[str], *, metadata: Metadata | None = None, sigma: float | None = None
    ) -> RewardOutput:
        assert len(prompts) == media.shape[0]
        self.sigmas.append(sigma)
        self.rows += len(prompts)
        values = media.flatten(1)
        scores = torch.tensor([math.fsum(row) / len(row) for row in values.tolist()])
        return RewardOutput(scores, {"first": values[:, 0], "last": -values[:, -1]})


@dataclass
class Scorer:
    """Any function of a row and sigma."""

    function: Callable[[Tensor, float | None], float]
    name: str = "scorer"
    differentiable: bool = False

    def score(
        self, media: Tensor, prompts: Sequence[str], *, metadata: Metadata | None = None, sigma: float | None = None
    ) -> RewardOutput:
        return RewardOutput(torch.tensor([self.function(row, sigma) for row in media]))


class GuidedToy(ToyPipeline):
    """A toy under classifier-free guidance: twice as many rows go through the network."""

    def predict(self, x: Tensor, model_time: Tensor, condition: Condition) -> Tensor:
        cond = super().predict(x, model_time, condition)
        uncond = self.network(x, model_time.to(x), torch.zeros(len(condition)))
        self.batches.append(x.shape[0])
        return uncond + 1.5 * (cond - uncond)


@dataclass
class LatentReader:
    """Scores the first source's mean less the last one's; remembers the shapes it was handed on the way."""

    sources: tuple[Source, ...]
    name: str = "latent-reader"
    differentiable: bool = False
    shapes: list[tuple[int, ...]] = field(default_factory=list)

    def reading(self, sigma: float) -> Reading:
        assert sigma > 0
        return Reading(self.sources, decoded=False)

    def score(
        self, media: Tensor, prompts: Sequence[str], *, metadata: Metadata | None = None, sigma: float | None = None
    ) -> RewardOutput:
        assert sigma is not None
        self.shapes.append(tuple(media.shape))
        parts = media.chunk(len(self.sources), dim=1)
        return RewardOutput(parts[0].flatten(1).mean(1) - parts[-1].flatten(1).mean(1))


class ShowingToy(GuidedToy):
    """A guided toy that shows its conditional branch."""

    def predict_branches(self, x: Tensor, model_time: Tensor, condition: Condition) -> Branches:
        return Branches(self.predict(x, model_time, condition), ToyPipeline.predict(self, x, model_time, condition))
