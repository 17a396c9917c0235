"""The plans of a rollout from its configuration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from difalign.core.config import RunConfig
from difalign.core.config_plans import BranchPlan, CascadePlan, PlainPlan, SplitPlan, WindowPlan, WindowStrategy

if TYPE_CHECKING:
    from difalign.core.types import Plan


def build_plans(config: RunConfig, *, rollout: int) -> tuple[Plan, ...]:
    """The plans that every start noise of one rollout walks; only steps of ``config.interval`` are recorded.

    With ``sampling.same_latent`` a prompt has one start noise, and its walk forks into ``samples_per_prompt`` rows.

    Args:
        config: the run; its seed and ``rollout`` key the windows and branch steps that are drawn, alike everywhere.
        rollout: counted from 0.
    """
    from difalign.rollout import plans

    sampling, interval = config.sampling, config.interval(rollout)
    make: Callable[..., Plan] | None = None
    match sampling.plan:
        case PlainPlan() as plan:
            make = partial(
                plans.plain,
                timestep_fraction=config.objective.timestep_fraction,
                last_step_noise=plan.last_step_noise,
                children=sampling.samples_per_prompt // config.roots_per_prompt,
            )
        case WindowPlan() as plan:
            start, size = window_at(plan, seed=config.seed, rollout=rollout)
            children = sampling.samples_per_prompt // config.roots_per_prompt
            make = partial(plans.window, start=start, size=size, children=children)
        case BranchPlan() as plan:
            available = range(interval.start, config.branch_steps)
            at = branch_steps(plan, available, seed=config.seed, rollout=rollout)
            return plans.branch(sampling.steps, sampling.noise_level, children=plan.children, at=at)
        case SplitPlan() as plan:
            make = partial(
                plans.split,
                at=interval.start if plan.at is None else plan.at,
                children=plan.children,
                last_step_noise=plan.last_step_noise,
                train_prefix=plan.train_prefix,
            )
        case CascadePlan() as plan:
            make = partial(plans.cascade, at=plan.at, children=plan.children, last_step_noise=plan.last_step_noise)
    return (_recorded_in(interval, make(sampling.steps, sampling.noise_level)),)


def window_at(plan: WindowPlan, *, seed: int, rollout: int) -> tuple[int, int]:
    """First step and size of the window in one rollout; a moving window is clipped at ``plan.high``."""
    from difalign.rollout import windows

    if plan.strategy == "fixed":
        return plan.low, plan.size
    if plan.strategy == "random":
        return windows.random_start(seed, rollout, low=plan.low, high=plan.high, size=plan.size), plan.size
    stop = plan.high - plan.low
    dwell: dict[WindowStrategy, windows.Dwell] = {
        "progressive": windows.constant_dwell(plan.shift_every),
        "decay": windows.linear_dwell(plan.shift_every, stop=stop),
        "exp_decay": windows.exponential_dwell(plan.shift_every),
    }
    start = windows.progressive_start(rollout, stop=stop, dwell=dwell[plan.strategy], stride=plan.shift_by)
    return plan.low + start, windows.clipped_size(start, size=plan.size, stop=stop)


def branch_steps(plan: BranchPlan, available: range, *, seed: int, rollout: int) -> tuple[int, ...]:
    """The steps that branch in one rollout, among ``available``: k of them, or all if there are no more."""
    from difalign.rollout import plans

    count = len(available) if plan.mode == "all" else min(plan.k, len(available))
    if plan.mode == "sampled_k":
        drawn = plans.sampled_steps(len(available) + 1, count, seed=seed, epoch=rollout)
        return tuple(available[step] for step in drawn)
    return tuple(available[:count])


def _recorded_in(interval: range, plan: Plan) -> Plan:
    return tuple(entry if step in interval else replace(entry, record=False) for step, entry in enumerate(plan))
