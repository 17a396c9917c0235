"""A student that scores latents of unfinished samples: nothing is decoded to ask it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn

from difalign.core.protocols import Movable, ReadsTexts
from difalign.core.types import Metadata, Reading, RewardOutput
from difalign.reward_models.latent_network import LatentNetwork
from difalign.reward_models.latent_tower import LatentTower
from difalign.reward_models.networks import check_micro_batch, frozen

LatentScorer = LatentNetwork | LatentTower


@final
class LatentStudent:
    """One network for all levels of noise, told which; it is asked with a sigma, and never about what is finished.

    Args:
        network: scores latents; frozen here. A gradient reaches the latents.
        reader: makes the vectors of the prompts that the network was taught with.
        micro_batch: rows a forward; memory only.
        name: of the reward.
    """

    differentiable = True

    def __init__(
        self, network: LatentScorer, reader: ReadsTexts, *, micro_batch: int = 256, name: str = "latent-student"
    ) -> None:
        self.name = name
        self.model: nn.Module = frozen(network)
        self._network = network
        self._reader = reader
        self._micro_batch = check_micro_batch(micro_batch)

    def reading(self, sigma: float) -> Reading:
        """The latents of its sources, at any noise."""
        return Reading(self._network.config.sources, decoded=False)

    def to(self, device: str | torch.device) -> None:
        """Move the network, and the reader where it can be moved."""
        self.model.to(device)
        if isinstance(self._reader, Movable):
            self._reader.to(device)

    def score(
        self, media: Tensor, prompts: Sequence[str], *, metadata: Metadata | None = None, sigma: float | None = None
    ) -> RewardOutput:
        """Score latents at noise ``sigma`` of all sources, stacked along the channels, [N, k C, h, w].

        Raises:
            ValueError: without a sigma above 0, or for anything but such latents, one prompt each.
        """
        if sigma is None or not (math.isfinite(sigma) and sigma > 0):
            raise ValueError(
                f"sigma = {sigma}: {self.name} reads estimates at a noise above 0; its teacher scores what is finished"
            )
        self._check(media, prompts)
        texts = self._reader.embed_texts(prompts)
        device = next(self._network.parameters()).device
        scores = []
        for rows, said in zip(media.split(self._micro_batch), texts.split(self._micro_batch), strict=True):
            noise = torch.full((rows.shape[0],), sigma, device=device)
            scores.append(self._network(rows.to(device), noise, said.to(device)))
        return RewardOutput(torch.cat(scores).to(media.device))

    def _check(self, media: Tensor, prompts: Sequence[str]) -> None:
        wanted = self._network.config
        if tuple(media.shape[1:]) != wanted.shape or not media.is_floating_point():
            raise ValueError(
                f"{self.name} reads latents [N, {', '.join(map(str, wanted.shape))}] of {' + '.join(wanted.sources)}, "
                f"got {media.dtype} of shape {tuple(media.shape)}; hand it undecoded estimates of that size"
            )
        if media.shape[0] != len(prompts) or not prompts:
            raise ValueError(f"{media.shape[0]} rows of latents but {len(prompts)} prompts; give one prompt a row")
        if not bool(media.detach().isfinite().all()):
            raise ValueError(f"{self.name} was handed latents that are not finite; leave these rows out")
