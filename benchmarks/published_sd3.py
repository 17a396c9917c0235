"""What the loops in the structure of the published SD3 training scripts have in common: calls, steps and loss.

Yardsticks, written from the description of those scripts (arXiv 2505.05470 and 2508.04324) and not from their text.
They call diffusers' own modules and share nothing with the package but the model, the reward and the list of noise
levels, so that agreement says something.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from difalign.core.protocols import RewardModel
from difalign.core.types import NoiseGrid

Mark = Callable[[str], None]  # called with a phase's name when a part of it is done


@dataclass(frozen=True, slots=True)
class Settings:
    """What a loop does."""

    levels: tuple[float, ...]  # noise level of every step where it is stochastic, 0 = never
    trained: tuple[int, ...]  # steps that are trained on
    guidance: float
    detach_uncond: bool
    batch: int  # rows a forward, in sampling and in training
    tokens: int  # max_sequence_length
    clip_range: float
    advantage_clip: float
    advantage_eps: float
    max_grad_norm: float
    noise_aware: bool = False  # weigh a step by its std over their mean (arXiv 2508.04324)
    beta: float = 0.0  # of the Gaussian KL to the policy without adapters

    @property
    def steps(self) -> int:
        """Of the chain."""
        return len(self.levels)


@dataclass(frozen=True, slots=True)
class Embeds:
    """Prompt embeddings of B rows."""

    tokens: Tensor  # [B, L, D]
    pooled: Tensor  # [B, P]

    def rows(self, index: Tensor) -> Embeds:
        """The rows ``index``."""
        return Embeds(self.tokens[index], self.pooled[index])

    def repeated(self, count: int) -> Embeds:
        """Every row ``count`` times in a row."""
        return Embeds(self.tokens.repeat_interleave(count, dim=0), self.pooled.repeat_interleave(count, dim=0))

    @staticmethod
    def joined(parts: Sequence[Embeds]) -> Embeds:
        """All rows of ``parts``."""
        return Embeds(torch.cat([part.tokens for part in parts]), torch.cat([part.pooled for part in parts]))


@dataclass(frozen=True, slots=True)
class Transitions:
    """One recorded step of B rows, and what its loss needs."""

    x: Tensor  # [B, *latent]
    x_next: Tensor  # [B, *latent]
    log_prob: Tensor  # [B]
    advantage: Tensor  # [B]
    embeds: Embeds  # B rows


@final
@dataclass(frozen=True, slots=True)
class Parts:
    """The calls over one set of modules; ``pipe`` is a StableDiffusion3Pipeline with adapters on its transformer."""

    pipe: Any
    reward: RewardModel
    grid: NoiseGrid
    settings: Settings

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Embeds:
        """Every row's own embeddings."""
        embeds, _, pooled, _ = self.pipe.encode_prompt(
            prompt=list(prompts),
            prompt_2=None,
            prompt_3=None,
            do_classifier_free_guidance=False,
            max_sequence_length=self.settings.tokens,
        )
        return Embeds(embeds, pooled)

    def score(self, x: Tensor, prompts: Sequence[str]) -> Tensor:
        """The rewards of decoded latents, [B]."""
        z = x / self.pipe.vae.config.scaling_factor + (self.pipe.vae.config.shift_factor or 0.0)
        images = self.pipe.image_processor.postprocess(self.pipe.vae.decode(z, return_dict=False)[0], output_type="pt")
        return self.reward.score(images, prompts).scores

    def velocity(self, x: Tensor, step: int, embeds: Embeds, negative: Embeds) -> Tensor:
        """The network after guidance, [B, *latent]."""
        count = x.shape[0]
        guided = self.settings.guidance > 1
        if guided:
            x = torch.cat([x, x])
            embeds = Embeds.joined([negative.repeated(count), embeds])
        output = self.pipe.transformer(
            hidden_states=x,
            timestep=self.grid.model_time[step].expand(x.shape[0]),
            encoder_hidden_states=embeds.tokens,
            pooled_projections=embeds.pooled,
            return_dict=False,
        )[0]
        if not guided:
            return output
        uncond, cond = output.chunk(2)
        if self.settings.detach_uncond:
            uncond = uncond.detach()
        return uncond + self.settings.guidance * (cond - uncond)

    def transition(self, x: Tensor, velocity: Tensor, step: int) -> tuple[Tensor, float]:
        """Mean [B, *latent] and std of the SDE step (arXiv 2505.05470, Eq. 9)."""
        sigma, dt = float(self.grid.sigma[step]), self._dt(step)
        g = self._diffusion(step)
        drift = g**2 / (2 * sigma)
        mean = x * (1 + drift * dt) + velocity * (1 + drift * (1 - sigma)) * dt
        return mean, g * math.sqrt(-dt)

    def euler(self, x: Tensor, velocity: Tensor, step: int) -> Tensor:
        """The ODE step, [B, *latent]."""
        return x + velocity * self._dt(step)

    def loss(self, step: int, of: Transitions, negative: Embeds) -> Tensor:
        """The clipped surrogate and the pull to the policy without adapters, summed over the rows, []."""
        settings = self.settings
        mean, std = self.transition(of.x, self.velocity(of.x, step, of.embeds, negative), step)
        ratio = (log_prob(of.x_next, mean, std) - of.log_prob).exp()
        clipped = ratio.clamp(1 - settings.clip_range, 1 + settings.clip_range)
        loss = self._weight(step) * torch.maximum(-of.advantage * ratio, -of.advantage * clipped).sum()
        if settings.beta > 0:
            with torch.no_grad():
                self.pipe.transformer.disable_adapters()
                reference, _ = self.transition(of.x, self.velocity(of.x, step, of.embeds, negative), step)
                self.pipe.transformer.enable_adapters()
            distance = (mean - reference).square().flatten(1).mean(dim=1)
            loss = loss + settings.beta * (distance / (2 * std**2)).sum()
        return loss

    def _weight(self, step: int) -> float:
        if not self.settings.noise_aware:
            return 1.0
        stds = [self._std(trained) for trained in self.settings.trained]
        return self._std(step) / (sum(stds) / len(stds))

    def _std(self, step: int) -> float:
        return self._diffusion(step) * math.sqrt(-self._dt(step))

    def _diffusion(self, step: int) -> float:
        """g at a step, its pole at sigma = 1 moved to the next level."""
        sigma = float(self.grid.sigma[step])
        finite = float(self.grid.sigma[1]) if sigma == 1 else sigma
        return self.settings.levels[step] * math.sqrt(sigma / (1 - finite))

    def _dt(self, step: int) -> float:
        return float(self.grid.sigma[step + 1]) - float(self.grid.sigma[step])


def group_advantages(rewards: Tensor, group: Sequence[object], settings: Settings) -> Tensor:
    """(reward - mean) / (std + eps) over the rows of a group, clipped; rewards [N] or [N, columns], each on its own."""
    advantages = torch.zeros_like(rewards)
    for one in set(group):
        rows = torch.tensor([other == one for other in group])
        of_group = rewards[rows].double()
        spread = of_group.std(dim=0, correction=0) + settings.advantage_eps
        advantages[rows] = ((of_group - of_group.mean(dim=0)) / spread).float()
    return advantages.clamp(-settings.advantage_clip, settings.advantage_clip)


def log_prob(x_next: Tensor, mean: Tensor, std: float) -> Tensor:
    """Mean log-density over latent elements, [B]."""
    density = -((x_next.detach() - mean) ** 2) / (2 * std**2) - math.log(std) - 0.5 * math.log(2 * math.pi)
    return density.mean(dim=tuple(range(1, density.dim())))
