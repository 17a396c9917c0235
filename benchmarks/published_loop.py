"""One Flow-GRPO epoch in the structure of the published training scripts (arXiv 2505.05470, released SD3 trainer).

A yardstick for ``bench_grpo_epoch``, written from the description of those scripts and not from their text:

- sampling goes batch by batch, as many rows as fit one process (9 in the published configuration); every batch encodes
  the prompt of every row, decodes and scores its images, and keeps what training needs, embeddings included;
- training shuffles the rows, forms batches of the same size again and takes them one (batch, step) at a time: forward,
  log-prob, loss, backward; one optimiser step ends the epoch.

What is slow in them only by accident (several processes, gathering over them, looking up a scheduler's index row by
row) is left out. The noise is drawn beforehand, so that both sides of the benchmark make the same samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from difalign.core.protocols import RewardModel
from difalign.core.types import NoiseGrid

Mark = Callable[[str], None]  # called with a phase's name when a part of it is done


@dataclass(frozen=True, slots=True)
class Settings:
    """What the loop does."""

    steps: int
    levels: tuple[float, ...]  # noise level of every step, 0 = ODE
    trained: tuple[int, ...]  # steps that are trained on
    guidance: float
    detach_uncond: bool
    batch: int  # rows a forward, in sampling and in training
    tokens: int  # max_sequence_length
    clip_range: float
    advantage_clip: float
    advantage_eps: float
    max_grad_norm: float


@dataclass(frozen=True, slots=True)
class Noise:
    """Everything random, one row a sample."""

    start: Tensor  # [N, *latent]
    steps: Tensor  # [N, T, *latent]


@dataclass(frozen=True, slots=True)
class Samples:
    """What sampling leaves behind, one row a sample."""

    embeds: Tensor  # [N, L, D]
    pooled: Tensor  # [N, P]
    latents: Tensor  # [N, T, *latent]
    next_latents: Tensor  # [N, T, *latent]
    log_probs: Tensor  # [N, T], 0 at deterministic steps
    rewards: Tensor  # [N]

    def rows(self, index: Tensor) -> Samples:
        """The rows ``index``."""
        return Samples(*(getattr(self, field.name)[index] for field in fields(self)))


@dataclass(frozen=True, slots=True)
class PublishedLoop:
    """The loop over one set of modules; ``pipe`` is a StableDiffusion3Pipeline with adapters on its transformer."""

    pipe: Any
    reward: RewardModel
    grid: NoiseGrid
    settings: Settings

    def run(
        self,
        prompts: Sequence[str],
        noise: Noise,
        *,
        parameters: Sequence[nn.Parameter],
        optimizer: torch.optim.Optimizer,
        mark: Mark,
    ) -> None:
        """Sample ``prompts`` (one a row, equal ones are a group), compare, and take one optimiser step."""
        samples = self._sample(prompts, noise, mark)
        advantages = self._advantages(samples.rewards, prompts)
        self._train(samples, advantages, mark)
        torch.nn.utils.clip_grad_norm_(parameters, self.settings.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        mark("training")

    # --- sampling -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _sample(self, prompts: Sequence[str], noise: Noise, mark: Mark) -> Samples:
        negative = self._encode([""])
        batches = []
        for low in range(0, len(prompts), self.settings.batch):
            rows = slice(low, low + self.settings.batch)
            batches.append(self._sample_batch(prompts[rows], negative, noise.start[rows], noise.steps[rows], mark))
        return Samples(*(torch.cat([getattr(b, field.name) for b in batches]) for field in fields(Samples)))

    def _sample_batch(
        self, prompts: Sequence[str], negative: tuple[Tensor, Tensor], x: Tensor, noise: Tensor, mark: Mark
    ) -> Samples:
        embeds, pooled = self._encode(prompts)
        latents, log_probs = [x], []
        for step in range(self.settings.steps):
            velocity = self._velocity(x, step, (embeds, pooled), negative)
            mean, std = self._transition(x, velocity, step)
            x = mean + std * noise[:, step]
            log_probs.append(_log_prob(x, mean, std) if std > 0 else torch.zeros(len(prompts)))
            latents.append(x)
        mark("sampling")
        z = x / self.pipe.vae.config.scaling_factor + (self.pipe.vae.config.shift_factor or 0.0)
        images = self.pipe.image_processor.postprocess(self.pipe.vae.decode(z, return_dict=False)[0], output_type="pt")
        rewards = self.reward.score(images, prompts).scores
        mark("scoring")
        chain = torch.stack(latents, dim=1)
        return Samples(embeds, pooled, chain[:, :-1], chain[:, 1:], torch.stack(log_probs, dim=1), rewards)

    def _encode(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Every row's own embeddings, [B, L, D] and [B, P]."""
        embeds, _, pooled, _ = self.pipe.encode_prompt(
            prompt=list(prompts),
            prompt_2=None,
            prompt_3=None,
            do_classifier_free_guidance=False,
            max_sequence_length=self.settings.tokens,
        )
        return embeds, pooled

    # --- training -----------------------------------------------------------------------------------------------

    def _advantages(self, rewards: Tensor, prompts: Sequence[str]) -> Tensor:
        """(reward - mean) / (std + eps) over the rows of a prompt, clipped, [N]."""
        advantages = torch.zeros(len(prompts))
        for prompt in set(prompts):
            group = torch.tensor([other == prompt for other in prompts])
            of_group = rewards[group].double()
            spread = of_group.std(correction=0) + self.settings.advantage_eps
            advantages[group] = ((of_group - of_group.mean()) / spread).float()
        return advantages.clamp(-self.settings.advantage_clip, self.settings.advantage_clip)

    def _train(self, samples: Samples, advantages: Tensor, mark: Mark) -> None:
        """The gradient of the clipped surrogate, mean over all rows and steps."""
        with torch.no_grad():
            negative = self._encode([""])
        count = advantages.numel()
        order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
        for rows in order.split(self.settings.batch):
            batch, advantage = samples.rows(rows), advantages[rows]
            for step in self.settings.trained:
                x = batch.latents[:, step]
                velocity = self._velocity(x, step, (batch.embeds, batch.pooled), negative)
                mean, std = self._transition(x, velocity, step)
                ratio = (_log_prob(batch.next_latents[:, step], mean, std) - batch.log_probs[:, step]).exp()
                clipped = ratio.clamp(1 - self.settings.clip_range, 1 + self.settings.clip_range)
                loss = torch.maximum(-advantage * ratio, -advantage * clipped).sum()
                (loss / (count * len(self.settings.trained))).backward()
            mark("training")

    # --- one step -----------------------------------------------------------------------------------------------

    def _velocity(
        self, x: Tensor, step: int, condition: tuple[Tensor, Tensor], negative: tuple[Tensor, Tensor]
    ) -> Tensor:
        """The network after guidance, [B, *latent]."""
        count = x.shape[0]
        guided = self.settings.guidance > 1
        if guided:
            x = torch.cat([x, x])
            condition = (
                torch.cat([negative[0].repeat(count, 1, 1), condition[0]]),
                torch.cat([negative[1].repeat(count, 1), condition[1]]),
            )
        output = self.pipe.transformer(
            hidden_states=x,
            timestep=self.grid.model_time[step].expand(x.shape[0]),
            encoder_hidden_states=condition[0],
            pooled_projections=condition[1],
            return_dict=False,
        )[0]
        if not guided:
            return output
        uncond, cond = output.chunk(2)
        if self.settings.detach_uncond:
            uncond = uncond.detach()
        return uncond + self.settings.guidance * (cond - uncond)

    def _transition(self, x: Tensor, velocity: Tensor, step: int) -> tuple[Tensor, float]:
        """Mean [B, *latent] and std of the SDE step (arXiv 2505.05470, Eq. 9)."""
        sigma, sigma_next = float(self.grid.sigma[step]), float(self.grid.sigma[step + 1])
        finite = float(self.grid.sigma[1]) if sigma == 1 else sigma
        g = self.settings.levels[step] * math.sqrt(sigma / (1 - finite))
        dt = sigma_next - sigma
        drift = g**2 / (2 * sigma)
        mean = x * (1 + drift * dt) + velocity * (1 + drift * (1 - sigma)) * dt
        return mean, g * math.sqrt(-dt)


def _log_prob(x_next: Tensor, mean: Tensor, std: float) -> Tensor:
    """Mean log-density over latent elements, [B]."""
    density = -((x_next.detach() - mean) ** 2) / (2 * std**2) - math.log(std) - 0.5 * math.log(2 * math.pi)
    return density.mean(dim=tuple(range(1, density.dim())))
