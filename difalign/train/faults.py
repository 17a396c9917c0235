"""Losses and gradients that are not finite numbers: where they came from, and when there have been too many."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from difalign.core.types import NoiseGrid
from difalign.report.alarms import Alarm
from difalign.train.collector import Batch
from difalign.train.sharding import local

_SHOWN_PROMPTS = 3
_REMEDY = (
    "lower training.learning_rate, or train in float32 (training.mixed_precision=no); if it is always the same sigma, "
    "leave that step out (objective.timestep_fraction, sampling.plan)"
)


@dataclass(frozen=True, slots=True)
class Fault:
    """The micro-batch that first gave no finite number, on one process."""

    what: str  # "loss" or "gradient"
    rank: int
    steps: tuple[int, ...]
    sigmas: tuple[float, ...]
    prompts: tuple[str, ...]

    def __str__(self) -> str:
        sigmas = ", ".join(f"{sigma:.4g}" for sigma in self.sigmas)
        names = ", ".join(repr(prompt) for prompt in self.prompts[:_SHOWN_PROMPTS])
        more = len(self.prompts) - _SHOWN_PROMPTS
        others = f" and {more} more" if more > 0 else ""
        return (
            f"the {self.what} is not finite on process {self.rank} at steps {list(self.steps)} (sigma {sigmas}), "
            f"prompts {names}{others}"
        )


def locate_fault(what: str, batch: Batch, rows: Tensor, grid: NoiseGrid, *, rank: int) -> Fault:
    """The fault of the micro-batch ``rows`` ([B] edges of ``batch``)."""
    walks = batch.scored.trajectories
    steps = sorted(set(walks.step[rows].tolist()))
    texts = {batch.prompts[int(batch.prompt_index[root])] for root in walks.root[rows].tolist()}
    sigmas = tuple(float(grid.sigma[step]) for step in steps)
    return Fault(what, rank, tuple(steps), sigmas, tuple(sorted(texts)))


def has_finite_gradients(parameters: Iterable[nn.Parameter]) -> bool:
    """Whether the gradients that this process has collected so far are finite."""
    gradients = [local(parameter.grad) for parameter in parameters if parameter.grad is not None]
    return not gradients or bool(torch.nn.utils.get_total_norm(gradients).isfinite())


@torch.no_grad()
def spoil_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Make one gradient not a number, so that the sum over processes is none either and all of them skip the update."""
    first = parameters[0]
    first.grad = torch.full_like(first, torch.nan)


def skip_alarm(faults: Sequence[Fault], *, norm: float, rollout: int, update: int, skipped: int, most: int) -> Alarm:
    """The alarm of an update that was skipped, for the ``skipped``-th time in a row."""
    cause = "; ".join(map(str, faults)) if faults else f"the gradient norm is {norm} after it was summed over processes"
    return Alarm(
        "skipped_update",
        rollout,
        update,
        seen=f"{cause}; the update was skipped ({skipped} in a row, guards.max_skipped = {most})",
        remedy=_REMEDY,
        value=float(skipped),
        limit=float(most),
    )
