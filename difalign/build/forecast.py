"""What a run will do, counted before it does: pure arithmetic on its configuration and plans, no model and no data.

The totals of a run do not depend on how many processes share it; what one process does, does. Everything here equals
what the trainer counts, under two provisos: a clock (``training.max_seconds``) may stop a run early, and an update
leaves out recorded edges of groups without variance, and a rollout those that it does not select, so that rows, and
the updates that selected trajectories are cut into, are upper bounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import TYPE_CHECKING

from difalign.core.config import DtypeName, RunConfig

if TYPE_CHECKING:
    from difalign.build.cards import GuidanceKind
    from difalign.core.types import Plan

PlanSchedule = Callable[[int], "tuple[Plan, ...]"]  # rollout index -> the plans it runs

_UNCONDITIONAL_BRANCH: dict[GuidanceKind, bool] = {"classifier_free": True, "embedded": False, "none": False}
_BYTES: dict[DtypeName, int] = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True)
class WalkCount:
    """What one start noise costs in one rollout."""

    rows: tuple[int, ...]  # rows the network is evaluated on, a step of the grid
    edges: int  # recorded steps
    leaves: int  # samples


@dataclass(frozen=True, slots=True)
class RunForecast:
    """Totals of a whole run over all processes."""

    rollouts: int
    updates: int  # steps of the optimiser
    prompts_per_update: int
    group_size: int  # samples compared with one another
    samples: int  # generated for training
    sampling_forwards: int  # rows of the denoiser, as the trainer counts them
    recorded_edges: int
    training_rows: int  # rows of forward and backward; fewer where groups without variance are left out
    reference_rows: int  # rows of the policy before training, for the divergence or for pairs
    diagnostic_rows: int  # rows of forward and backward for the gradients of single steps; at most, as training_rows
    diagnostic_pictures: int  # samples decoded once more for pictures of their trees
    evaluations: int
    evaluation_samples: int
    evaluation_forwards: int  # rows of the denoiser
    sampling_network_rows: int  # rows that the network computes for sampling; twice, with an unconditional branch
    evaluation_network_rows: int  # likewise, for evaluation

    @property
    def decodes(self) -> int:
        """Latents that become pictures."""
        return self.samples + self.evaluation_samples + self.diagnostic_pictures

    @property
    def reward_calls(self) -> int:
        """Samples scored in training, as the trainer counts them."""
        return self.samples


@dataclass(frozen=True, slots=True)
class ProcessForecast:
    """What the busiest of several processes does in one rollout, the dearest one where rollouts differ."""

    processes: int
    prompts_per_update: int
    samples: int
    sampling_forwards: int  # rows
    recorded_edges: int
    sampling_batches: int  # calls of the denoiser
    scoring_batches: int  # calls of decoder and reward
    training_batches: int  # forward and backward passes of one update
    stored_bytes: int | None  # latents kept from sampling to the last update; None where their size is not known
    busy: float  # share of the time that the processes would be at work if all rows took the same


def count_walk(plans: tuple[Plan, ...]) -> WalkCount:
    """The cost of one start noise that walks ``plans``."""
    return _count_walk(plans)


@lru_cache(maxsize=256)
def _count_walk(plans: tuple[Plan, ...]) -> WalkCount:
    from difalign.rollout.trie import merge

    trie = merge(plans)
    return WalkCount(
        rows=tuple(level.rows for level in trie.levels),
        edges=sum(edge.rows for _, edge in trie.recorded),
        leaves=sum(trie.leaf_rows),
    )


def forecast_run(
    config: RunConfig, plans: PlanSchedule, *, heldout: int, guidance_kind: GuidanceKind = "classifier_free"
) -> RunForecast:
    """The totals of a run.

    Args:
        config: the run.
        plans: the plans of each rollout, as the trainer is given them.
        heldout: how many held-out prompts there are, before ``evaluation.limit``.
        guidance_kind: of the pipeline, as its card says.
    """
    training, sampling, evaluation = config.training, config.sampling, config.evaluation
    roots = config.prompts_per_rollout * config.roots_per_prompt
    walks = [count_walk(plans(index)) for index in range(training.rollouts)]
    forwards = roots * sum(sum(walk.rows) for walk in walks)
    edges = roots * sum(walk.edges for walk in walks)
    samples = roots * sum(walk.leaves for walk in walks)
    looked = walks[:: config.diagnostics.every] if config.diagnostics.every else []
    diagnosed = sum(_edges_per_update(config, walk, roots // training.updates_per_rollout) for walk in looked)
    drawn = min(config.diagnostics.prompts, sampling.prompts_per_update) * config.roots_per_prompt
    shown = heldout if evaluation.limit is None else min(heldout, evaluation.limit)
    evaluated = config.evaluations * shown * evaluation.seeds_per_prompt
    return RunForecast(
        rollouts=training.rollouts,
        updates=config.updates,
        prompts_per_update=sampling.prompts_per_update,
        group_size=config.group_size,
        samples=samples,
        sampling_forwards=forwards,
        recorded_edges=edges,
        training_rows=edges * training.inner_epochs,
        reference_rows=edges * training.inner_epochs + diagnosed if config.objective.uses_reference else 0,
        diagnostic_rows=diagnosed,
        diagnostic_pictures=drawn * sum(walk.leaves for walk in looked),
        evaluations=config.evaluations,
        evaluation_samples=evaluated,
        evaluation_forwards=evaluated * evaluation.steps,
        sampling_network_rows=forwards * rows_a_forward(sampling.guidance, guidance_kind),
        evaluation_network_rows=evaluated * evaluation.steps * rows_a_forward(evaluation.guidance, guidance_kind),
    )


def forecast_process(
    config: RunConfig, plans: PlanSchedule, *, processes: int, latent_shape: tuple[int, ...] | None
) -> ProcessForecast:
    """What the busiest of ``processes`` does in one rollout; the first process is never less busy than another.

    Args:
        config: the run.
        plans: the plans of each rollout.
        processes: how many share the prompts of an update, each prompt whole.
        latent_shape: of one latent, [C, h, w]; None if it is not known.

    Raises:
        ValueError: if there are more processes than prompts in an update, as the trainer would refuse.
    """
    prompts = config.sampling.prompts_per_update
    if not 1 <= processes <= prompts:
        raise ValueError(
            f"{processes} processes cannot share {prompts} prompts an update, since a prompt's samples stay on one of "
            f"them; use 1 to {prompts} processes, or sampling.prompts_per_update={max(processes, 1)} or more"
        )
    walks = {count_walk(plans(index)) for index in range(config.training.rollouts)}
    of_each = [_forecast_walk(config, walk, processes, latent_shape) for walk in walks]
    return max(of_each, key=lambda forecast: (forecast.sampling_forwards, forecast.recorded_edges))


def rows_a_forward(guidance: float, guidance_kind: GuidanceKind = "classifier_free") -> int:
    """Rows the network computes for one row of a forward: two, if there is an unconditional branch.

    There is none at or below a scale of 1, and none where the scale is an input of the network.
    """
    return 2 if guidance > 1.0 and _UNCONDITIONAL_BRANCH[guidance_kind] else 1


def as_mapping(forecast: RunForecast | ProcessForecast) -> dict[str, int | float | None]:
    """The numbers by name, for JSON."""
    numbers = {field.name: getattr(forecast, field.name) for field in fields(forecast)}
    if isinstance(forecast, RunForecast):
        numbers |= {"decodes": forecast.decodes, "reward_calls": forecast.reward_calls}
    return numbers


def _edges_per_update(config: RunConfig, walk: WalkCount, roots: int) -> int:
    """The most that one process takes part in an update with, of ``roots`` start noises."""
    share, edges = config.training.trajectories_per_update, roots * walk.edges
    return edges if share is None else min(edges, math.ceil(share * walk.edges / walk.leaves))


def _forecast_walk(
    config: RunConfig, walk: WalkCount, processes: int, latent_shape: tuple[int, ...] | None
) -> ProcessForecast:
    sampling, training = config.sampling, config.training
    prompts = math.ceil(sampling.prompts_per_update / processes)
    roots, parts = prompts * config.roots_per_prompt, training.updates_per_rollout
    micro = sampling.micro_batch
    stored = None
    if latent_shape is not None:
        per_root = (2 * walk.edges + walk.leaves) * _BYTES[sampling.storage_dtype]  # both ends of an edge; the samples
        if config.objective.ratio == "ratio_norm":
            per_root += walk.edges * _BYTES["float32"]  # the mean of an edge
        stored = parts * roots * per_root * math.prod(latent_shape)
    return ProcessForecast(
        processes=processes,
        prompts_per_update=prompts,
        samples=parts * roots * walk.leaves,
        sampling_forwards=parts * roots * sum(walk.rows),
        recorded_edges=parts * roots * walk.edges,
        sampling_batches=parts * sum(math.ceil(roots * rows / micro) for rows in walk.rows),
        scoring_batches=parts * math.ceil(roots * walk.leaves / micro),
        training_batches=math.ceil(_edges_per_update(config, walk, roots) / training.micro_batch),
        stored_bytes=stored,
        busy=sampling.prompts_per_update / (processes * prompts),
    )
