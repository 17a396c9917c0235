"""One Flow-GRPO epoch in the structure of the published training scripts (arXiv 2505.05470, released SD3 trainer).

A yardstick for ``bench_grpo_epoch``:

- sampling goes batch by batch, as many rows as fit one process (9 in the published configuration); every batch encodes
  the prompt of every row, decodes and scores its images, and keeps what training needs, embeddings included;
- training shuffles the rows, forms batches of the same size again and takes them one (batch, step) at a time: forward,
  log-prob, loss, backward; one optimiser step ends the epoch.

What is slow in them only by accident (several processes, gathering over them, looking up a scheduler's index row by
row) is left out. The noise is drawn beforehand, so that both sides of the benchmark make the same samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.published_sd3 import Embeds, Mark, Parts, Transitions, group_advantages, log_prob


@dataclass(frozen=True, slots=True)
class Noise:
    """Everything random, one row a sample."""

    start: Tensor  # [N, *latent]
    steps: Tensor  # [N, T, *latent]


@dataclass(frozen=True, slots=True)
class Samples:
    """What sampling leaves behind, one row a sample."""

    embeds: Embeds  # N rows
    latents: Tensor  # [N, T, *latent]
    next_latents: Tensor  # [N, T, *latent]
    log_probs: Tensor  # [N, T], 0 at deterministic steps
    rewards: Tensor  # [N]


@dataclass(frozen=True, slots=True)
class PublishedLoop:
    """The loop over one set of modules."""

    parts: Parts

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
        advantages = group_advantages(samples.rewards, prompts, self.parts.settings)
        self._train(samples, advantages, mark)
        torch.nn.utils.clip_grad_norm_(parameters, self.parts.settings.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        mark("training")

    @torch.no_grad()
    def _sample(self, prompts: Sequence[str], noise: Noise, mark: Mark) -> Samples:
        negative, size = self.parts.encode([""]), self.parts.settings.batch
        batches = [
            self._sample_batch(prompts[low : low + size], negative, start, steps, mark)
            for low, start, steps in zip(
                range(0, len(prompts), size), noise.start.split(size), noise.steps.split(size), strict=True
            )
        ]
        return Samples(
            embeds=Embeds.joined([batch.embeds for batch in batches]),
            latents=torch.cat([batch.latents for batch in batches]),
            next_latents=torch.cat([batch.next_latents for batch in batches]),
            log_probs=torch.cat([batch.log_probs for batch in batches]),
            rewards=torch.cat([batch.rewards for batch in batches]),
        )

    def _sample_batch(self, prompts: Sequence[str], negative: Embeds, x: Tensor, noise: Tensor, mark: Mark) -> Samples:
        parts = self.parts
        embeds = parts.encode(prompts)
        latents, log_probs = [x], []
        for step in range(parts.settings.steps):
            mean, std = parts.transition(x, parts.velocity(x, step, embeds, negative), step)
            x = mean + std * noise[:, step]
            log_probs.append(log_prob(x, mean, std) if std > 0 else torch.zeros(len(prompts)))
            latents.append(x)
        mark("sampling")
        rewards = parts.score(x, prompts)
        mark("scoring")
        chain = torch.stack(latents, dim=1)
        return Samples(embeds, chain[:, :-1], chain[:, 1:], torch.stack(log_probs, dim=1), rewards)

    def _train(self, samples: Samples, advantages: Tensor, mark: Mark) -> None:
        """The gradient of the clipped surrogate, mean over all rows and steps."""
        settings = self.parts.settings
        negative, count = self.parts.encode([""]), advantages.numel()
        order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
        for rows in order.split(settings.batch):
            embeds = samples.embeds.rows(rows)
            for step in settings.trained:
                of = Transitions(
                    x=samples.latents[rows, step],
                    x_next=samples.next_latents[rows, step],
                    log_prob=samples.log_probs[rows, step],
                    advantage=advantages[rows],
                    embeds=embeds,
                )
                (self.parts.loss(step, of, negative) / (count * len(settings.trained))).backward()
            mark("training")
