"""Plans as a user writes them: where noise enters, where a walk forks, and which part of it is trained when.

Sources: as in ``difalign.core.config``, and B2 = B2-DiffuRL (Hu et al., CVPR 2025, arXiv 2503.11240) and its released
script.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from difalign.core import curriculum
from difalign.core.config_fields import Count, Section, StepIndex

WindowStrategy = Literal["fixed", "random", "progressive", "decay", "exp_decay"]
ScheduleName = Literal["linear_floor", "linear_round", "list", "cyclic"]


class PlainPlan(Section):
    """Every step is stochastic (Flow-GRPO)."""

    kind: Literal["plain"] = "plain"
    last_step_noise: bool = True  # FG released sampler: noise is also added at the last step


class WindowPlan(Section):
    """Stochastic inside a window of steps, ODE outside (Flow-GRPO-Fast, MixGRPO)."""

    kind: Literal["window"]
    size: Count = 3  # FG fast recipes: 3 steps
    low: StepIndex = 0  # FG fast recipes: window anywhere in [0, 5)
    high: Count = 5  # FG fast recipes
    strategy: WindowStrategy = "random"  # FG fast: random; MG: progressive
    shift_every: Count = 25  # MG: rollouts between two moves of a moving window
    shift_by: Count = 1  # MG: overlapping windows, one step a move


class BranchPlan(Section):
    """An ODE trunk; at each chosen step one stochastic step with children, then ODE tails (TempFlow-GRPO)."""

    kind: Literal["branch"]
    mode: Literal["all", "early_k", "sampled_k"] = "all"  # TF released code: every step but the last
    k: Count = 3  # own: early_k 3 costs 147 forwards a seed where all costs 279 (10 steps, 6 children)
    children: Count = 6  # TF released code: 4 seeds x 6 explorations


class SplitPlan(Section):
    """A shared stochastic prefix that splits once, at step ``at``, into stochastic tails (B2-DiffuRL)."""

    kind: Literal["split"]
    at: StepIndex | None = None  # null = where the interval of the curriculum begins (B2)
    children: Annotated[int, Field(ge=2)] = 5  # B2
    train_prefix: bool = False  # B2: only the suffix is trained
    last_step_noise: bool = False  # own: the last step of most rules has next to no density


class CascadePlan(Section):
    """A tree: every row forks again at each step of ``at``, stochastic throughout (BranchGRPO)."""

    kind: Literal["cascade"]
    at: Annotated[tuple[StepIndex, ...], Field(strict=False, min_length=1)] = (0, 3, 6, 9)  # BG, 20 steps
    children: Annotated[int, Field(ge=2)] = 2  # BG: 16 leaves from four forks
    last_step_noise: bool = True  # BG: noise at every step


AnyPlan = PlainPlan | WindowPlan | BranchPlan | SplitPlan | CascadePlan
PlanConfig = Annotated[AnyPlan, Field(discriminator="kind")]


class CurriculumConfig(Section):
    """The last s steps of the chain are trained on, and s depends on the rollout, which B2 calls a stage."""

    # linear_floor: a staircase; linear_round: the same, rounded; cyclic: the staircase again and again;
    # list: one length a stage. Past its end a schedule keeps its last length. See difalign.core.curriculum.
    schedule: ScheduleName = "linear_floor"  # B2
    first: Count = 14  # B2: 14 of 20 steps
    last: Count = 20  # B2: the whole chain
    stages: Count = 100  # B2
    lengths: Annotated[tuple[Count, ...], Field(strict=False, min_length=1)] | None = None  # of schedule: list

    def length(self, rollout: int) -> int:
        """How many of the last steps are trained on in rollout ``rollout``, counted from 0."""
        if self.lengths is not None:
            return curriculum.listed(rollout, self.lengths)
        grow = {
            "linear_floor": curriculum.linear_floor,
            "linear_round": curriculum.linear_round,
            "cyclic": curriculum.cyclic,
        }[self.schedule]
        return grow(rollout, first=self.first, last=self.last, stages=self.stages)

    @property
    def shortest(self) -> int:
        """The least length of the schedule."""
        return self.first if self.lengths is None else min(self.lengths)

    @property
    def longest(self) -> int:
        """The length that the schedule never exceeds."""
        return self.last if self.lengths is None else max(self.lengths)


def leaves_per_seed(plan: AnyPlan) -> int:
    """Samples that are compared with one another and grow from one start noise."""
    match plan:
        case BranchPlan() | SplitPlan():
            return plan.children
        case CascadePlan():
            return plan.children ** len(plan.at)
        case _:
            return 1
