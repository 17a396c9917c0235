"""Intervals that no chain or plan can follow: see ``difalign.core.cross_checks``."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from difalign.core.config import RunConfig


def curriculum_checks(config: RunConfig) -> tuple[str | None, ...]:
    """What is wrong with the curriculum and with plans that follow it, a sentence each; None where nothing is."""
    return (
        _split_nowhere(config),
        _lengths_of_another_schedule(config),
        _interval_shrinks(config),
        _interval_outside_chain(config),
        _interval_without_steps(config),
        _window_in_interval(config),
    )


def _split_nowhere(config: RunConfig) -> str | None:
    plan = config.sampling.plan
    if plan.kind != "split" or plan.at is not None or config.curriculum is not None:
        return None
    return (
        "sampling.plan.at = null: splits where the interval of a curriculum begins, and curriculum is null; use "
        f"sampling.plan.at={config.sampling.steps // 3}, or a curriculum such as curriculum.schedule=linear_floor"
    )


def _lengths_of_another_schedule(config: RunConfig) -> str | None:
    options = config.curriculum
    if options is None or (options.schedule == "list") == (options.lengths is not None):
        return None
    if options.lengths is None:
        return "curriculum.lengths = null: schedule = list needs one length a stage; use curriculum.lengths=[5,10,20]"
    return (
        f"curriculum.lengths = {list(options.lengths)}: has no effect with schedule = {options.schedule}; use "
        "curriculum.schedule=list, or leave lengths out"
    )


def _interval_shrinks(config: RunConfig) -> str | None:
    options = config.curriculum
    if options is None or options.first <= options.last:
        return None
    return (
        f"curriculum.first = {options.first}: is longer than last = {options.last}, and an interval grows; use "
        f"curriculum.first={options.last} or less, or schedule=list for lengths of your own"
    )


def _interval_outside_chain(config: RunConfig) -> str | None:
    options, steps = config.curriculum, config.sampling.steps
    if options is None or options.longest <= steps:
        return None
    key = "curriculum.last" if options.lengths is None else "curriculum.lengths"
    return (
        f"{key} = {options.longest}: an interval longer than the chain of sampling.steps = {steps}; use at "
        f"most {steps}, or sampling.steps={options.longest}"
    )


def _interval_without_steps(config: RunConfig) -> str | None:
    """An interval of the last few steps may hold only such as are never trained on."""
    if config.curriculum is None or config.trainable_steps < 1:
        return None
    plan, steps, end = config.sampling.plan, config.sampling.steps, config.trainable_steps
    if plan.kind == "branch":
        end = config.branch_steps
    elif plan.kind != "window" and not plan.last_step_noise:
        end = min(end, steps - 1)
    shortest = config.curriculum.shortest
    if steps - shortest < end:
        return None
    key = "curriculum.first" if config.curriculum.lengths is None else "curriculum.lengths"
    return (
        f"{key} = {shortest}: the last {shortest} of sampling.steps = {steps} hold no step to train, since only steps "
        f"0 to {end - 1} carry noise and are trained on under sampling.plan.kind = {plan.kind} and "
        f"objective.timestep_fraction = {config.objective.timestep_fraction}; use at least {steps - end + 1}"
    )


def _window_in_interval(config: RunConfig) -> str | None:
    if config.curriculum is None or config.sampling.plan.kind != "window":
        return None
    return (
        "curriculum: a window plan already says which steps are trained when; use curriculum=null, or "
        "sampling.plan.kind=plain"
    )
