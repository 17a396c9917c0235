"""The values that travel between the parts: grids, steps, plans, trajectories, scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class NoiseGrid:
    """A denoising chain of T steps; index 0 is the noisiest level and index T the cleanest.

    ``x_i = alpha[i] * x0 + sigma[i] * noise`` at level i. The network is called with
    ``model_time[i]`` to make the step from level i to level i + 1.
    """

    alpha: Tensor  # [T+1] float32 or float64
    sigma: Tensor  # [T+1] float32 or float64, falling
    model_time: Tensor  # [T]
    # Where step i ends, if that is not level i + 1: diffusers' DDIM lands beside its next level at some spacings.
    alpha_landing: Tensor | None = None  # [T]
    sigma_landing: Tensor | None = None  # [T]

    @property
    def num_steps(self) -> int:
        """T, the number of steps."""
        return self.model_time.shape[0]

    @property
    def alpha_next(self) -> Tensor:
        """The alpha that each step ends at, [T]."""
        return self.alpha[1:] if self.alpha_landing is None else self.alpha_landing

    @property
    def sigma_next(self) -> Tensor:
        """The sigma that each step ends at, [T]."""
        return self.sigma[1:] if self.sigma_landing is None else self.sigma_landing

    @classmethod
    def variance_preserving(cls, kept: Tensor, kept_landing: Tensor, model_time: Tensor) -> NoiseGrid:
        """The chain of a diffusion model, where ``alpha^2 + sigma^2 = 1``.

        The roots are stored in float64: their squares, rounded to float32, give ``kept`` and ``1 - kept`` back exactly.

        Args:
            kept: the signal's share of the variance that each step starts at (alphas_cumprod), [T] float32.
            kept_landing: the share that each step ends at, [T] float32.
            model_time: [T].
        """
        level = torch.cat([kept, kept_landing[-1:]])
        chained = torch.equal(level[1:], kept_landing)
        return cls(
            alpha=level.double().sqrt(),
            sigma=(1 - level).double().sqrt(),
            model_time=model_time,
            alpha_landing=None if chained else kept_landing.double().sqrt(),
            sigma_landing=None if chained else (1 - kept_landing).double().sqrt(),
        )


@dataclass(frozen=True, slots=True)
class GaussianStep:
    """The distribution of the next latent; ``std == 0`` means the step is deterministic."""

    mean: Tensor  # [N, *latent] float32
    std: Tensor  # [N, 1, ...] float32, broadcasts against mean


@dataclass(frozen=True, slots=True)
class Branches:
    """What a network predicts with guidance and without; the same tensor where guidance takes no second evaluation."""

    guided: Tensor  # [N, *latent] float32
    conditional: Tensor  # [N, *latent] float32


Branch = Literal["guided", "conditional"]
# What a step shows of where its rows are going: x0 as either branch predicts it, or the state itself.
Source = Branch | Literal["state"]


@dataclass(frozen=True, slots=True)
class Reading:
    """What a judge of unfinished samples is handed.

    Raises:
        ValueError: if no source is named, or several are to be decoded into one picture.
    """

    sources: tuple[Source, ...] = ("guided",)
    decoded: bool = True  # pixels of the one source; if not, latents of all of them, stacked along the channels

    def __post_init__(self) -> None:
        if not self.sources or (self.decoded and len(self.sources) > 1):
            raise ValueError(f"sources = {self.sources}: name one, or several that are read as latents")


@dataclass(frozen=True, slots=True)
class StepPlan:
    """What a walk does at one step: how much noise, how many children, and whether it is trained on."""

    noise_level: float = 0.0  # in the unit of the process's noise rule; 0 = deterministic (ODE)
    fan_out: int = 1  # children per row
    record: bool = False  # keep (x, x_next, log_prob) for the objective


Plan = tuple[StepPlan, ...]  # one entry per step of the grid, index 0 first


@dataclass(frozen=True, slots=True)
class Trajectories:
    """What a rollout leaves behind: the recorded edges of its trees, and the leaves.

    An *edge* is one recorded step of one row; a *leaf* is a final sample. ``descent`` joins them:
    column j says that leaf ``descent[1, j]`` descends from edge ``descent[0, j]``. Leaves may be on another device
    than the rest.
    """

    x: Tensor  # [M, *latent] where each edge starts, storage dtype
    x_next: Tensor  # [M, *latent] where it ends, storage dtype
    log_prob: Tensor  # [M] float32, under the policy that sampled
    step: Tensor  # [M] int64, index into the grid
    noise_level: Tensor  # [M] float32, of the edge's StepPlan
    root: Tensor  # [M] int64, the initial latent the edge descends from
    descent: Tensor  # [2, E] int64
    final: Tensor  # [L, *latent]
    final_root: Tensor  # [L] int64
    final_plan: Tensor  # [L] int64, index into the plans that were run
    forwards: int  # rows the network was evaluated on
    mean: Tensor | None = None  # [M, *latent] float32, of each edge's distribution; kept only on request


Metadata = Sequence[Mapping[str, object]]  # what a prompt file says beside each prompt, one entry a prompt


@dataclass(frozen=True, slots=True)
class RewardOutput:
    """Scores of a batch of media; higher is better.

    A row that could not be scored is not valid: it holds NaN, and never a number that would be taken for a judgement.
    """

    scores: Tensor  # [N] float32, finite where valid
    components: Mapping[str, Tensor] = field(default_factory=dict)  # name -> [N] float32, logged raw
    valid: Tensor | None = None  # [N] bool; None = all
    errors: Mapping[int, str] = field(default_factory=dict)  # row -> why it is not valid


@dataclass(frozen=True, slots=True)
class Scored:
    """Trajectories with the reward of every leaf and the group every edge is compared in."""

    trajectories: Trajectories
    rewards: Mapping[str, Tensor]  # name -> [L] float32; "total" is what the objective uses
    edge_reward: Tensor  # [M] float32, mean of "total" over the edge's leaves
    group: Tensor  # [M] int64
