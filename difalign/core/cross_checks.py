"""Options that are fine alone and wrong together: each check says which, why, and what to write instead."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from difalign.core.comparison_checks import comparison_checks
from difalign.core.curriculum_checks import curriculum_checks
from difalign.core.surrogate_checks import surrogate_checks

if TYPE_CHECKING:
    from difalign.core.config import RunConfig

_NOISELESS_END = ("cps", "ddim_eta")  # std is proportional to the next sigma, which is 0 at the last step
_UNIT_NOISE = ("cps", "ddim_eta", "ddim")  # CPS: std = sigma' sin(a pi / 2); DDIM: eta in [0, 1]


def contradictions(config: RunConfig) -> list[str]:
    """Every contradiction, one sentence each with the remedy; empty for a sound configuration."""
    checks = (
        _no_step_to_train(config),
        _deterministic_last_step(config),
        _noise_out_of_unit(config),
        _kl_without_kind(config),
        _plan_outside_chain(config),
        *curriculum_checks(config),
        _same_latent_in_tree(config),
        *comparison_checks(config),
        *surrogate_checks(config),
        _average_never_taken(config),
        _reward_called_total(config),
        _zero_weights(config),
        _zero_spread(config),
        _replaced_and_resumed(config),
        _changes_without_resume(config),
    )
    return [problem for problem in checks if problem is not None]


def _no_step_to_train(config: RunConfig) -> str | None:
    if config.trainable_steps >= 1:
        return None
    steps, fraction = config.sampling.steps, config.objective.timestep_fraction
    return (
        f"objective.timestep_fraction = {fraction}: leaves no step of sampling.steps = {steps} to train; "
        f"use sampling.steps={math.ceil(1 / fraction)} or more"
    )


def _deterministic_last_step(config: RunConfig) -> str | None:
    sampling, fraction = config.sampling, config.objective.timestep_fraction
    if sampling.rule not in _NOISELESS_END or config.trainable_steps < sampling.steps:
        return None
    return (
        f"objective.timestep_fraction = {fraction}: includes the last step, which has no noise under "
        f"sampling.rule = {sampling.rule}, so no density; use objective.timestep_fraction=0.99"
    )


def _noise_out_of_unit(config: RunConfig) -> str | None:
    sampling = config.sampling
    if sampling.rule not in _UNIT_NOISE or sampling.noise_level <= 1:
        return None
    return (
        f"sampling.noise_level = {sampling.noise_level}: must be at most 1 with sampling.rule = {sampling.rule}; "
        "use sampling.noise_level=0.8, or another rule"
    )


def _kl_without_kind(config: RunConfig) -> str | None:
    kl = config.objective.kl
    if kl.kind != "none" or kl.beta == 0:
        return None
    return (
        f"objective.kl.beta = {kl.beta}: has no effect with objective.kl.kind = none; "
        "choose a kind (gaussian, flow_grpo, velocity, x0) or set objective.kl.beta=0"
    )


def _plan_outside_chain(config: RunConfig) -> str | None:
    plan, last = config.sampling.plan, config.trainable_steps
    remedy = f"the first {last} of sampling.steps = {config.sampling.steps} can be trained"
    match plan.kind:
        case "window" if plan.high > last:
            return f"sampling.plan.high = {plan.high}: beyond the chain; {remedy}: use at most {last}"
        case "window" if plan.low + plan.size > plan.high:
            return (
                f"sampling.plan.size = {plan.size}: does not fit between low = {plan.low} and high = {plan.high}; "
                f"use size <= {max(plan.high - plan.low, 1)}, or a wider range"
            )
        case "branch" if config.sampling.steps < 2:
            return f"sampling.steps = {config.sampling.steps}: a branch plan never forks at the last step; use >= 2"
        case "branch" if plan.mode != "all" and plan.k > config.branch_steps:
            return (
                f"sampling.plan.k = {plan.k}: more branch steps than the chain has; use at most {config.branch_steps}"
            )
        case "split" if plan.at is not None and plan.at >= last:
            return f"sampling.plan.at = {plan.at}: beyond the chain; {remedy}: use at most {last - 1}"
        case "cascade" if list(plan.at) != sorted(set(plan.at)):
            return f"sampling.plan.at = {list(plan.at)}: must rise; use {sorted(set(plan.at))}"
        case "cascade" if plan.at[-1] >= last:
            return f"sampling.plan.at = {list(plan.at)}: beyond the chain; {remedy}: use at most {last - 1}"
    return None


def _same_latent_in_tree(config: RunConfig) -> str | None:
    sampling = config.sampling
    if not sampling.same_latent or sampling.plan.kind in ("plain", "window"):
        return None
    return (
        f"sampling.same_latent = true: a {sampling.plan.kind} plan already starts its children from one latent; "
        "use sampling.same_latent=false, and sampling.samples_per_prompt for the number of start noises"
    )


def _average_never_taken(config: RunConfig) -> str | None:
    training = config.training
    if not training.ema.enabled or config.updates >= training.ema.every:
        return None
    return (
        f"training.ema.every = {training.ema.every}: the run has only {config.updates} updates, so the average that is "
        "evaluated and saved would stay untrained; use training.ema.enabled=false, or more training.rollouts"
    )


def _reward_called_total(config: RunConfig) -> str | None:
    if "total" not in config.rewards:
        return None
    card = config.rewards["total"].card or "total"
    return (
        "rewards.total: total is the name of the weighted sum of all rewards; "
        f"use another name, such as rewards.mine.card={card}"
    )


def _zero_weights(config: RunConfig) -> str | None:
    if any(reward.weight != 0 for reward in config.rewards.values()):
        return None
    return "rewards: every weight is 0, so nothing is rewarded; give at least one reward a weight"


def _zero_spread(config: RunConfig) -> str | None:
    advantage = config.objective.advantage
    if advantage.std == "none" or advantage.eps > 0 or config.objective.filter_zero_variance:
        return None
    return (
        "objective.advantage.eps = 0.0: divides by zero where all rewards of a group are equal; "
        "use eps=1e-4, or objective.filter_zero_variance=true"
    )


def _replaced_and_resumed(config: RunConfig) -> str | None:
    if not config.overwrite or config.resume is None:
        return None
    return (
        f"resume = {config.resume!r}: goes on with the run that overwrite = true would replace; "
        "use overwrite=false, or resume=null"
    )


def _changes_without_resume(config: RunConfig) -> str | None:
    if not config.resume_with_changes or config.resume is not None:
        return None
    return "resume_with_changes = true: has no effect with resume = null; use resume=latest"
