"""Comparisons that compare nothing: see ``difalign.core.cross_checks``."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from difalign.core.config import RunConfig


def comparison_checks(config: RunConfig) -> tuple[str | None, ...]:
    """What is wrong with groups, statistics and selection, a sentence each; None where nothing is."""
    return (
        _group_of_one(config),
        _statistics_without_groups(config),
        _history_never_used(config),
        _history_never_full(config),
        _overlapping_thresholds(config),
        _pick_of_one(config),
        _reward_without_group(config),
        _gate_among_groups(config),
    )


def _picks_from_groups(config: RunConfig) -> bool:
    """Whether groups matter beyond the statistics: their extremes are selected or paired."""
    return config.objective.advantage.selection is not None or config.objective.surrogate == "pair"


def _group_of_one(config: RunConfig) -> str | None:
    if config.group_size >= 2:
        return None
    sampling, by = config.sampling, config.objective.advantage.group_by
    if by == "seed":
        return (
            "objective.advantage.group_by = seed: nothing to compare, one sample grows from each start noise under "
            f"sampling.plan.kind = {sampling.plan.kind}; use group_by=prompt, or a plan with children >= 2"
        )
    return (
        f"sampling.samples_per_prompt = {sampling.samples_per_prompt}: a sample needs another of its prompt to be "
        "compared with; use sampling.samples_per_prompt >= 2"
    )


def _reward_without_group(config: RunConfig) -> str | None:
    statistics = config.objective.advantage.statistics
    for name, reward in config.rewards.items():
        if reward.scale.kind == "group" and statistics != "group":
            return (
                f"rewards.{name}.scale.kind = group: compares the reward within groups of its own, and "
                f"objective.advantage.statistics = {statistics} otherwise; use statistics=group, or scale.kind=rank"
            )
    return None


def _gate_among_groups(config: RunConfig) -> str | None:
    apart = [name for name, reward in config.rewards.items() if reward.scale.kind == "group"]
    gates = [name for name, reward in config.rewards.items() if reward.gate is not None]
    if apart and gates:
        return (
            f"rewards.{gates[0]}.gate: replaces the whole reward of a sample, of which rewards.{apart[0]}.scale.kind = "
            "group keeps a part by itself; use scale.kind=rank there, or no gate"
        )
    return None


def _statistics_without_groups(config: RunConfig) -> str | None:
    advantage = config.objective.advantage
    if advantage.statistics == "group":
        return None
    if advantage.std != "group":
        return (
            f"objective.advantage.std = {advantage.std}: has no effect with objective.advantage.statistics = "
            f"{advantage.statistics}, which brings its own std; use std=group, or statistics=group"
        )
    if advantage.group_by != "prompt" and not _picks_from_groups(config):
        return (
            f"objective.advantage.group_by = {advantage.group_by}: has no effect with objective.advantage.statistics = "
            f"{advantage.statistics}; use group_by=prompt, or statistics=group"
        )
    return None


def _history_never_used(config: RunConfig) -> str | None:
    advantage = config.objective.advantage
    history, defaults = advantage.history, type(advantage.history)()
    used = {"prompt_history": {"buffer_size", "min_count"}, "stage_history": {"stages"}}
    idle = {"buffer_size", "min_count", "stages"} - used.get(advantage.statistics, set())
    changed = [key for key in sorted(idle) if getattr(history, key) != getattr(defaults, key)]
    found = [f"{key} = {getattr(history, key)}" for key in changed]
    if not found:
        return None
    remedy = "stage_history" if found[0].startswith("stages") else "prompt_history"
    return (
        f"objective.advantage.history: {' and '.join(found)} has no effect with objective.advantage.statistics = "
        f"{advantage.statistics}; use statistics={remedy}, or leave it out"
    )


def _history_never_full(config: RunConfig) -> str | None:
    history = config.objective.advantage.history
    if config.objective.advantage.statistics != "prompt_history" or history.min_count <= history.buffer_size:
        return None
    return (
        f"objective.advantage.history.min_count = {history.min_count}: is never reached, since no more than "
        f"buffer_size = {history.buffer_size} rewards of a prompt are kept; use buffer_size={history.min_count} or more"
    )


def _overlapping_thresholds(config: RunConfig) -> str | None:
    selection = config.objective.advantage.selection
    if selection is None or selection.negative <= selection.positive:
        return None
    return (
        f"objective.advantage.selection.negative = {selection.negative}: is above positive = {selection.positive}, so "
        f"that one sample could be best and worst; use negative={selection.positive} or less"
    )


def _pick_of_one(config: RunConfig) -> str | None:
    if not _picks_from_groups(config) or config.siblings >= 2:
        return None
    what = "objective.surrogate = pair" if config.objective.surrogate == "pair" else "objective.advantage.selection"
    return (
        f"{what}: picks the best and the worst of a group, and a group is one sample with "
        f"objective.advantage.group_by = {config.objective.advantage.group_by} and sampling.plan.kind = "
        f"{config.sampling.plan.kind}; use a plan with children >= 2, or group_by=prompt with "
        "sampling.samples_per_prompt >= 2"
    )
