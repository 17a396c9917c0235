"""The two families of pipelines: which options go with which, and what is taken where nothing is said.

A *flow* model predicts a velocity along straight paths; a *diffusion* model predicts noise, data or v under a
variance-preserving schedule. A pipeline's card says which it is; everything above the step treats both alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from difalign.core.config import Family, RuleName, RunConfig
from difalign.core.cross_checks import contradictions


@dataclass(frozen=True, slots=True)
class FamilyOptions:
    """What a family can be configured with."""

    rules: tuple[RuleName, ...]  # of sampling.rule, the default first
    noise_level: float  # the default
    step_size: bool  # whether a step has a size in sigma that a formula may use


FAMILIES: Mapping[Family, FamilyOptions] = {
    "flow": FamilyOptions(
        rules=("flow_grpo", "dance", "wan", "cps", "ddim_eta"),
        noise_level=0.7,  # Flow-GRPO (arXiv 2505.05470): a
        step_size=True,
    ),
    "diffusion": FamilyOptions(
        rules=("ddim",),
        noise_level=1.0,  # DDPO (arXiv 2305.13301): eta
        step_size=False,
    ),
}


def with_family_defaults(config: RunConfig, family: Family) -> RunConfig:
    """The configuration with ``sampling.rule`` and ``sampling.noise_level`` of the family, where it does not give them.

    The result is not checked: see ``family_contradictions``.
    """
    given, options = config.sampling.model_fields_set, FAMILIES[family]
    defaults = {"rule": options.rules[0], "noise_level": options.noise_level}
    update = {key: value for key, value in defaults.items() if key not in given}
    return config.model_copy(update={"sampling": config.sampling.model_copy(update=update)})


def family_contradictions(config: RunConfig, family: Family, *, pipeline: str) -> list[str]:
    """Every option that a pipeline of this family cannot follow, a sentence each; empty for a sound configuration.

    Args:
        config: the run, family defaults filled in.
        family: of the pipeline.
        pipeline: its name.
    """
    options, sampling, objective = FAMILIES[family], config.sampling, config.objective
    problems = []
    if sampling.rule not in options.rules:
        problems.append(
            f"sampling.rule = {sampling.rule}: is not a rule of {family} models, and pipeline {pipeline!r} is one; "
            f"leave it out, or use one of: {', '.join(options.rules)}"
        )
    if not options.step_size and objective.kl.kind == "flow_grpo":
        problems.append(
            f"objective.kl.kind = flow_grpo: multiplies by the step size of a flow, and pipeline {pipeline!r} is a "
            f"{family} model; use objective.kl.kind=gaussian"
        )
    if not options.step_size and objective.weight == "inverse_step_size":
        problems.append(
            f"objective.weight = inverse_step_size: divides by the step size of a flow, and pipeline {pipeline!r} is a "
            f"{family} model; use objective.weight=noise_aware"
        )
    return problems or contradictions(config)
