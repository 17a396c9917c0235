"""What the single steps of the chain contribute, measured every so many rollouts; weights and optimiser stay untouched.

TempFlow-GRPO (arXiv 2508.04324) argues from two pictures: rewards differ among explorations of early steps and hardly
among those of late ones, while the gradient of the log-density grows as 1/std towards the end of the chain. Both can
be looked at in any run: the spread of rewards within groups, by step, and the norm of each step's part of the policy
gradient, with its step weight and without.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from difalign.core.config import RunConfig
from difalign.core.protocols import TrainablePipeline
from difalign.core.types import NoiseGrid, Plan
from difalign.objective.advantages import among_scored, group_advantages
from difalign.objective.surrogate import Surrogate
from difalign.objective.weights import trained_steps
from difalign.report.diagnostics import Diagnostics, PromptTrees, StepSignal
from difalign.rollout.grouping import group_ids
from difalign.rollout.trie import merge
from difalign.train.collector import Batch, PlanSchedule, Report
from difalign.train.edge_loss import EdgeLoss
from difalign.train.partition import Part
from difalign.train.runtime import Runtime
from difalign.train.scoring import decode_in_batches
from difalign.train.sharding import number
from difalign.train.trees import grow_trees

Pictures = NDArray[np.float32]  # [L, C, H, W] in [0, 1]; L = 0 where samples are no pictures
WriteDiagnostics = Callable[[Diagnostics, Sequence[Pictures]], object]  # pictures of each prompt's leaves

_PICTURE_EDGE = 96  # pixels; there are many leaves, and the page holds them all


@final
class StepWatch:
    """Looks at every ``diagnostics.every``-th rollout of a trainer; all processes must make the same calls.

    Args:
        pipeline: whose weights are trained.
        loss: what the updates descend.
        parameters: the trained weights; their gradients are cleared after use.
        chunks: edges in micro-batches, as many on every process, if need be empty, where a forward takes all of them.
        accompany: a pass that counts for nothing, given the batch and the step weights, for an empty one.
        plans: of every rollout.
        config: the run.
        runtime: this process.
        grid: the chain of a rollout.
        write: takes what was seen, on every process; None: nothing is looked at.
    """

    def __init__(
        self,
        pipeline: TrainablePipeline,
        loss: EdgeLoss,
        parameters: Sequence[nn.Parameter],
        *,
        chunks: Callable[[Tensor], Sequence[Tensor]],
        accompany: Callable[[Batch, Tensor], None],
        plans: PlanSchedule,
        config: RunConfig,
        runtime: Runtime,
        grid: NoiseGrid,
        write: WriteDiagnostics | None,
    ) -> None:
        self._pipeline = pipeline
        self._loss = loss
        self._parameters = parameters
        self._chunks = chunks
        self._accompany = accompany
        self._plans = plans
        self._config = config
        self._runtime = runtime
        self._grid = grid
        self._write = write
        self._sums: dict[str, Tensor] | None = None  # name -> [T] float64, of this process; None between such rollouts
        self._norms: dict[int, float] = {}  # step -> gradient norm without its weight
        self._trees: list[PromptTrees] = []
        self._pictures: list[Pictures] = []
        self._weights = torch.zeros(0)  # [T]
        self._first_update = 0

    def is_due(self, index: int) -> bool:
        """Whether rollout ``index`` is looked at."""
        every = self._config.diagnostics.every
        return self._write is not None and every > 0 and index % every == 0

    def begin(self, index: int, batches: Sequence[Batch], first: Part, *, update: int, report: Report) -> None:
        """Before the updates of rollout ``index``, if it is due.

        Args:
            index: of the rollout.
            batches: what it sampled.
            first: what the first update learns from.
            update: the number of that update.
            report: shows progress.
        """
        names = ("edges", "groups", "std", "seeds", "seed_std", "ratios", "ratio", "ratio_square", "outside")
        self._sums = {name: torch.zeros(self._grid.num_steps, dtype=torch.float64) for name in names}
        self._first_update = update
        for batch in batches:
            self._rewards(batch)
        plans = self._plans(index)
        self._grow(first, plans)
        self._weights = self._loss.step_weights(first.batch).cpu()
        self._norms = self._step_norms(first, recorded_steps(plans), report)

    def chunk(self, update: int, batch: Batch, rows: Tensor, surrogate: Surrogate) -> None:
        """One micro-batch of an update; the first update is on-policy, and its ratios are 1."""
        if self._sums is None or update == self._first_update:
            return
        step = batch.scored.trajectories.step[rows].cpu()
        clip, ratio = self._config.objective.clip_range, surrogate.ratio.detach()
        outside = (ratio > 1.0 + clip) | (ratio < 1.0 - clip)
        away = ratio.cpu().double() - 1.0  # squares of what is so near to 1 would lose the spread
        for name, values in (
            ("ratios", torch.ones_like(away)),
            ("ratio", away),
            ("ratio_square", away.square()),
            ("outside", outside.cpu().double()),
        ):
            self._sums[name].index_add_(0, step, values)

    def end(self, index: int, batches: Sequence[Batch]) -> None:
        """After the updates of rollout ``index``: hand over what was seen."""
        if self._sums is None or self._write is None:
            return
        seen = Diagnostics(
            rollout=index,
            sigma=tuple(self._grid.sigma.tolist()),
            steps=self._signals(self._sums, batches[0], recorded_steps(self._plans(index))),
            prompts=tuple(self._trees),
        )
        self._write(seen, self._pictures)
        self._sums, self._trees, self._pictures = None, [], []

    # --- spread of rewards --------------------------------------------------------------------------------------

    def _rewards(self, batch: Batch) -> None:
        assert self._sums is not None
        walks = batch.scored.trajectories
        self._sums["edges"] += torch.bincount(walks.step.cpu(), minlength=self._grid.num_steps)
        seeds = group_ids(walks, batch.prompt_index, by="seed")
        for group, count, total in ((batch.scored.group, "groups", "std"), (seeds, "seeds", "seed_std")):
            spread = among_scored(batch.scored.edge_reward, group, group_advantages)
            told = spread.size > 1  # a single edge has no spread
            step_of_group = torch.zeros(int(group.max()) + 1, dtype=torch.int64)
            step = step_of_group.scatter_(0, group.cpu(), walks.step.cpu())[spread.group][told]
            self._sums[count] += torch.bincount(step, minlength=self._grid.num_steps)
            self._sums[total].index_add_(0, step, spread.std[told])

    # --- gradients ----------------------------------------------------------------------------------------------

    def _step_norms(self, first: Part, steps: Sequence[int], report: Report) -> dict[int, float]:
        """The norm of each step's part of the policy gradient, unweighted, as it enters the first update.

        A step has one weight, so that the weighted norm is the weight times this one.
        """
        step_of_row = first.batch.scored.trajectories.step.cpu()[first.rows.cpu()]
        norms = {}
        for done, step in enumerate(steps):
            report("diagnosing", done, len(steps))
            self._backward(first, first.rows[step_of_row == step])
            self._runtime.sum_gradients(self._parameters)
            gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
            norms[step] = number(get_total_norm(gradients)) / self._scale
            for parameter in self._parameters:
                parameter.grad = None
        report("diagnosing", len(steps), len(steps))
        return norms

    def _backward(self, first: Part, rows: Tensor) -> None:
        """The gradient of the unweighted policy loss of some edges, added up over micro-batches."""
        weights = torch.ones(self._grid.num_steps)
        for chunk in self._chunks(rows):
            if not chunk.numel():
                self._accompany(first.batch, weights)
                continue
            part = self._loss.chunk(first.batch, first.advantages.advantage, chunk, weights=weights, total=first.total)
            (part.surrogate.loss.sum() / first.total * self._scale).backward()

    @property
    def _scale(self) -> float:
        """What a loss is multiplied by against underflow in float16; the scaler itself must not learn of these."""
        return self._runtime.loss_scaling.get("scale", 1.0)

    # --- trees --------------------------------------------------------------------------------------------------

    def _grow(self, first: Part, plans: Sequence[Plan]) -> None:
        """The trees of the first prompts of the first update, wherever they were sampled, with pictures."""
        batch, roots = first.batch, self._config.roots_per_prompt
        places = {prompt: int(batch.root_position[prompt * roots]) // roots for prompt in range(len(batch.prompts))}
        mine = {prompt: place for prompt, place in places.items() if place < self._config.diagnostics.prompts}
        grown = grow_trees(batch, first.advantages, plans, prompts=mine)
        local = [(tree.shown, self._decoded(batch, tree.rows)) for tree in grown]
        everyone = sorted(self._runtime.gather(local), key=lambda item: item[0].index)
        self._trees = [trees for trees, _ in everyone]
        self._pictures = [pictures for _, pictures in everyone]

    def _decoded(self, batch: Batch, rows: Tensor) -> Pictures:
        final = batch.scored.trajectories.final
        media = decode_in_batches(
            self._pipeline, final[rows.to(final.device)], micro_batch=self._config.sampling.micro_batch
        )
        return small_pictures(media).numpy()

    # --- what was seen ------------------------------------------------------------------------------------------

    def _signals(self, sums: dict[str, Tensor], batch: Batch, steps: Sequence[int]) -> tuple[StepSignal, ...]:
        names = list(sums)
        joined = self._runtime.total(torch.cat([sums[name] for name in names]).tolist())
        whole = dict(zip(names, torch.tensor(joined, dtype=torch.float64).split(self._grid.num_steps), strict=True))
        walks = batch.scored.trajectories
        level = {step: float(walks.noise_level[walks.step == step][0]) for step in steps}
        noise = trained_steps(
            self._pipeline.process,
            self._grid,
            torch.tensor(steps),
            noise_level=torch.tensor([level[step] for step in steps]),
        )
        return tuple(
            self._signal(step, float(std), {name: float(values[step]) for name, values in whole.items()})
            for step, std in zip(steps, noise.std.tolist(), strict=True)
        )

    def _signal(self, step: int, std: float, sums: dict[str, float]) -> StepSignal:
        weight, norm = float(self._weights[step]), self._norms[step]
        away, square = _ratio(sums["ratio"], sums["ratios"]), _ratio(sums["ratio_square"], sums["ratios"])
        return StepSignal(
            step=step,
            sigma=float(self._grid.sigma[step]),
            sigma_next=float(self._grid.sigma_next[step]),
            std=std,
            weight=weight,
            edges=round(sums["edges"]),
            reward_std=_ratio(sums["std"], sums["groups"]),
            seed_reward_std=_ratio(sums["seed_std"], sums["seeds"]),
            gradient_norm=norm,
            weighted_gradient_norm=weight * norm,
            clip_fraction=_ratio(sums["outside"], sums["ratios"]),
            ratio_mean=None if away is None else 1.0 + away,
            ratio_std=None if away is None or square is None else math.sqrt(max(square - away * away, 0.0)),
        )


def recorded_steps(plans: Sequence[Plan]) -> tuple[int, ...]:
    """The steps that plans train, rising."""
    return tuple(sorted({step for step, _ in merge(plans).recorded}))


def small_pictures(media: Tensor, *, edge: int = _PICTURE_EDGE) -> Tensor:
    """Pictures averaged down to at most ``edge`` pixels a side, [N, C, H, W]; of a video [N, F, ...] the middle frame.

    What is neither gives none, [0, 3, 1, 1].
    """
    frames = media[:, media.shape[1] // 2] if media.dim() == 5 else media
    if frames.dim() != 4 or frames.shape[1] not in (1, 3):
        return media.new_zeros(0, 3, 1, 1)
    height, width = frames.shape[-2:]
    shrink = edge / max(height, width)
    if shrink < 1.0:
        size = (max(1, round(height * shrink)), max(1, round(width * shrink)))
        frames = torch.nn.functional.adaptive_avg_pool2d(frames, size)
    return frames.clamp(0.0, 1.0)


def _ratio(total: float, count: float) -> float | None:
    return total / count if count else None
