"""One TempFlow-GRPO epoch in the structure of the published per-step script (arXiv 2508.04324, released SD3 trainer).

A yardstick for ``bench_tempflow_epoch``:

- sampling goes batch by batch of start noises (one a process in the published configuration). A deterministic trunk is
  walked once; at every branch step its prediction gives K children with noise of their own, whose deterministic tails
  are walked to the end at once, decoded and scored, before the trunk takes its next step;
- each branch step has a column of rewards of its own, compared among the K children of a start noise;
- training shuffles the rows (a row is the k-th child of every branch step of one start noise), forms batches as large
  as those of the tails and takes them one (batch, step) at a time; one optimiser step ends the epoch.

The trunk stops after the last branch step, where the script would walk on for nothing. What is slow in the script only
by accident is left out as in ``published_loop``; the noise is drawn beforehand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.published_sd3 import Embeds, Mark, Parts, Transitions, group_advantages, log_prob


@dataclass(frozen=True, slots=True)
class BranchNoise:
    """Everything random, one row a start noise."""

    start: Tensor  # [R, *latent]
    children: Tensor  # [R, S, K, *latent], S branch steps


@dataclass(frozen=True, slots=True)
class Column:
    """The children of all start noises at one branch step, N = R * K rows, the children of a start noise together."""

    x: Tensor  # [N, *latent]
    x_next: Tensor  # [N, *latent]
    log_prob: Tensor  # [N]
    reward: Tensor  # [N]

    @staticmethod
    def joined(parts: Sequence[Column]) -> Column:
        """All rows of ``parts``."""
        return Column(
            x=torch.cat([part.x for part in parts]),
            x_next=torch.cat([part.x_next for part in parts]),
            log_prob=torch.cat([part.log_prob for part in parts]),
            reward=torch.cat([part.reward for part in parts]),
        )


@dataclass(frozen=True, slots=True)
class PublishedBranches:
    """The loop over one set of modules; ``parts.settings.batch`` counts start noises."""

    parts: Parts

    def run(
        self,
        prompts: Sequence[str],
        noise: BranchNoise,
        *,
        parameters: Sequence[nn.Parameter],
        optimizer: torch.optim.Optimizer,
        mark: Mark,
    ) -> None:
        """Sample from every start noise (one prompt each), compare its children, and take one optimiser step."""
        settings, children = self.parts.settings, noise.children.shape[2]
        embeds, columns = self._sample(prompts, noise, mark)
        roots = [root for root in range(len(prompts)) for _ in range(children)]
        rewards = torch.stack([column.reward for column in columns], dim=1)
        advantages = group_advantages(rewards, roots, settings)
        self._train(columns, embeds.repeated(children), advantages, settings.batch * children, mark)
        torch.nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        mark("training")

    @torch.no_grad()
    def _sample(self, prompts: Sequence[str], noise: BranchNoise, mark: Mark) -> tuple[Embeds, list[Column]]:
        negative, size = self.parts.encode([""]), self.parts.settings.batch
        embeds: list[Embeds] = []
        batches: list[list[Column]] = []
        for low, start, drawn in zip(
            range(0, len(prompts), size), noise.start.split(size), noise.children.split(size), strict=True
        ):
            mine = prompts[low : low + size]
            embeds.append(self.parts.encode(mine))
            batches.append(self._walk(mine, (embeds[-1], negative), start, drawn, mark))
        return Embeds.joined(embeds), [Column.joined(of_step) for of_step in zip(*batches, strict=True)]

    def _walk(
        self, prompts: Sequence[str], texts: tuple[Embeds, Embeds], trunk: Tensor, noise: Tensor, mark: Mark
    ) -> list[Column]:
        """A column for every branch step, rows of these start noises only; ``texts`` are their and the negative one."""
        parts, children, (embeds, negative) = self.parts, noise.shape[2], texts
        of_children = embeds.repeated(children)
        of_leaves = [prompt for prompt in prompts for _ in range(children)]
        columns: list[Column] = []
        for step in range(max(parts.settings.trained) + 1):
            velocity = parts.velocity(trunk, step, embeds, negative)
            if step in parts.settings.trained:
                mean, std = parts.transition(trunk, velocity, step)
                mean = mean.repeat_interleave(children, dim=0)
                x_next = mean + std * noise[:, len(columns)].flatten(0, 1)
                final = self._tail(x_next, step + 1, of_children, negative)
                mark("sampling")
                rewards = parts.score(final, of_leaves)
                mark("scoring")
                start = trunk.repeat_interleave(children, dim=0)
                columns.append(Column(start, x_next, log_prob(x_next, mean, std), rewards))
            trunk = parts.euler(trunk, velocity, step)
        mark("sampling")
        return columns

    def _tail(self, x: Tensor, first: int, embeds: Embeds, negative: Embeds) -> Tensor:
        """The ODE from step ``first`` to the end."""
        for step in range(first, self.parts.settings.steps):
            x = self.parts.euler(x, self.parts.velocity(x, step, embeds, negative), step)
        return x

    def _train(self, columns: Sequence[Column], embeds: Embeds, advantages: Tensor, size: int, mark: Mark) -> None:
        """The gradient of the loss, mean over all rows and columns."""
        negative = self.parts.encode([""])
        order = torch.randperm(advantages.shape[0], generator=torch.Generator().manual_seed(0))
        for rows in order.split(size):
            of_rows = embeds.rows(rows)
            for place, (step, column) in enumerate(zip(self.parts.settings.trained, columns, strict=True)):
                of = Transitions(
                    x=column.x[rows],
                    x_next=column.x_next[rows],
                    log_prob=column.log_prob[rows],
                    advantage=advantages[rows, place],
                    embeds=of_rows,
                )
                (self.parts.loss(step, of, negative) / advantages.numel()).backward()
            mark("training")
