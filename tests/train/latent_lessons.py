"""Gaussian latents with a linear reward, of which the best that can be known at a noise stands in closed form.

x0 is N(0, I); the latents at sigma are x0 + sigma n with n ~ N(0, I); the reward is w . x0, turned round for prompts of
the other direction. Given the latents y, x0 is N(y / (1 + sigma^2), sigma^2 / (1 + sigma^2) I), so that the best score
is w . y / (1 + sigma^2) and its mean squared error |w|^2 sigma^2 / (1 + sigma^2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from difalign.core.types import Metadata, RewardOutput
from difalign.reward_models.latent_network import LatentNetwork, LatentNetworkConfig
from difalign.train.latent_table import StoredLatents

SIGMAS = (0.5, 1.5)
WEIGHT = torch.linspace(-1, 1, 8)  # of two channels of 2 x 2
SHAPE = (2, 2, 2)


@dataclass(frozen=True, slots=True)
class Directions:
    """Reads prompts as plus or minus."""

    asked: list[str]

    def embed_texts(self, prompts: Sequence[str]) -> Tensor:
        """[1, 0] for prompts with "more" in them, [0, 1] for others."""
        self.asked.extend(prompts)
        return torch.tensor([[1.0, 0.0] if "more" in prompt else [0.0, 1.0] for prompt in prompts])


@dataclass(frozen=True, slots=True)
class BlackBox:
    """A reward without weights: the mean of the pixels."""

    name: str = "black-box"
    differentiable: bool = False

    def score(
        self, media: Tensor, prompts: Sequence[str], *, metadata: Metadata | None = None, sigma: float | None = None
    ) -> RewardOutput:
        """The mean of each picture."""
        return RewardOutput(media.flatten(1).mean(dim=1))


def lessons(rows: int, *, prompts: int = 4, seed: int = 0, turned: bool = False) -> StoredLatents:
    """A table of guided latents; with ``turned``, odd prompts want less of what others want more of."""
    source = torch.Generator().manual_seed(seed)
    clean = torch.randn(rows, 8, generator=source)
    noise = torch.randn(len(SIGMAS), rows, 8, generator=source)
    latents = torch.stack([clean + s * n for s, n in zip(SIGMAS, noise, strict=True)]).unflatten(2, SHAPE)
    numbers = torch.arange(rows) % prompts
    texts = tuple(f"{'less' if turned and number % 2 else 'more'} {number}" for number in numbers.tolist())
    sign = 1 - 2 * (numbers % 2).float() * turned
    return StoredLatents(texts, sign * (clean @ WEIGHT), SIGMAS, {"guided": latents})


def bayes_risk(sigma: float) -> float:
    """The mean squared error that no score can go below."""
    return float(WEIGHT @ WEIGHT) * sigma**2 / (1 + sigma**2)


def small_network(*, seed: int = 0, **changes: int) -> LatentNetwork:
    """One patch, one block."""
    made = {"channels": 2, "height": 2, "width": 2, "text_width": 2, "patch": 2, "hidden": 32, "depth": 1, "heads": 2}
    return LatentNetwork(LatentNetworkConfig(**{**made, **changes}), seed=seed)
