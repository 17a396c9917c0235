"""Losses and updates that do not go together: see ``difalign.core.cross_checks``."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from difalign.core.config import RunConfig


def surrogate_checks(config: RunConfig) -> tuple[str | None, ...]:
    """What is wrong with the loss and the updates it is taken in, a sentence each; None where nothing is."""
    return (
        _score_function_off_policy(config),
        _ratio_without_use(config),
        _pair_without_use(config),
        _half_a_pair(config),
        _scales_without_use(config),
        _parts_of_several_updates(config),
        _tail_without_parts(config),
    )


def _score_function_off_policy(config: RunConfig) -> str | None:
    training, parts = config.training, config.training.trajectories_per_update
    several = {
        "training.updates_per_rollout": training.updates_per_rollout,
        "training.inner_epochs": training.inner_epochs,
    }
    found = [f"{key} = {value}" for key, value in several.items() if value > 1]
    if parts is not None and parts < config.leaves_per_rollout:
        found.append(f"training.trajectories_per_update = {parts}")
    if config.objective.surrogate != "score_function" or not found:
        return None
    return (
        f"objective.surrogate = score_function: its gradient holds for samples of the policy being trained, and with "
        f"{' and '.join(found)} later updates learn from samples of an older one; use training.updates_per_rollout=1, "
        "training.inner_epochs=1 and training.trajectories_per_update=null (a larger sampling.prompts_per_update keeps "
        "the samples), or surrogate=clipped"
    )


def _ratio_without_use(config: RunConfig) -> str | None:
    objective = config.objective
    if objective.ratio == "plain":
        return None
    if objective.surrogate in ("score_function", "pair"):
        return (
            f"objective.ratio = {objective.ratio}: has no effect with objective.surrogate = "
            f"{objective.surrogate}, whose loss has no such ratio; use objective.ratio=plain, or surrogate=clipped"
        )
    if objective.log_prob != "gaussian":
        return (
            f"objective.ratio = {objective.ratio}: corrects a ratio of densities, and objective.log_prob = "
            f"{objective.log_prob} is none; use objective.log_prob=gaussian, or ratio=plain"
        )
    return None


def _pair_without_use(config: RunConfig) -> str | None:
    pair = config.objective.pair
    if config.objective.surrogate == "pair" or pair == type(pair)():
        return None
    return (
        f"objective.pair: has no effect with objective.surrogate = {config.objective.surrogate}; use "
        "objective.surrogate=pair, or leave pair out"
    )


def _half_a_pair(config: RunConfig) -> str | None:
    if config.objective.surrogate != "pair" or config.training.micro_batch >= 2:
        return None
    return "training.micro_batch = 1: a pair is evaluated together; use training.micro_batch=2 or more"


def _scales_without_use(config: RunConfig) -> str | None:
    advantage = config.objective.advantage
    if config.objective.surrogate != "pair" or (advantage.positive_scale, advantage.negative_scale) == (1.0, 1.0):
        return None
    return (
        f"objective.advantage.positive_scale = {advantage.positive_scale}, negative_scale = "
        f"{advantage.negative_scale}: have no effect with objective.surrogate = pair, which knows better and worse "
        "only; use 1.0 for both, or surrogate=clipped"
    )


def _parts_of_several_updates(config: RunConfig) -> str | None:
    training = config.training
    if training.trajectories_per_update is None or training.updates_per_rollout == 1:
        return None
    return (
        f"training.updates_per_rollout = {training.updates_per_rollout}: with training.trajectories_per_update = "
        f"{training.trajectories_per_update} the number of updates follows from what a rollout keeps; use "
        f"training.updates_per_rollout=1 and sampling.prompts_per_update={config.prompts_per_rollout}"
    )


def _tail_without_parts(config: RunConfig) -> str | None:
    if config.training.tail == "flush" or config.training.trajectories_per_update is not None:
        return None
    return (
        f"training.tail = {config.training.tail}: nothing is left over with training.trajectories_per_update = null; "
        "use tail=flush, or a number of trajectories"
    )
