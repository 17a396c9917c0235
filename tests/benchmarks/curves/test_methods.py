"""The table of methods: sound configurations that differ in what their names say and in nothing else."""

from __future__ import annotations

import pytest

from benchmarks.curves.methods import FAMILIES, Family
from difalign.build.preflight import prepare
from difalign.core.config import RunConfig

ENTRIES = [(family, method.name) for family in FAMILIES.values() for method in family.methods]


def of_name(family: Family, name: str) -> RunConfig:
    return family.config(name, seed=3)


@pytest.mark.parametrize(("family", "name"), ENTRIES, ids=lambda value: getattr(value, "pipeline", value))
def test_every_method_is_a_run_that_could_start(family: Family, name: str):
    inputs = prepare(of_name(family, name), check_output=False)
    assert inputs.pipeline.card.name == family.pipeline.removesuffix("-strict")
    assert inputs.config.seed == 3


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.pipeline)
def test_optimiser_adapters_and_reward_are_the_same_for_all(family: Family):
    configs = [of_name(family, method.name) for method in family.methods]
    for part in ("rewards", "prompts", "pipeline"):
        assert len({repr(getattr(config, part)) for config in configs}) == 1
    shared = {"lora", "betas", "weight_decay", "eps", "max_grad_norm", "ema", "trainable"}
    assert len({repr(config.training.model_dump(include=shared)) for config in configs}) == 1
    assert len({config.sampling.steps for config in configs}) == 1


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.pipeline)
def test_names_are_distinct_and_pictures_and_comparisons_know_them(family: Family):
    names = [method.name for method in family.methods]
    assert len(set(names)) == len(names)
    assert len({method.label for method in family.methods}) == len(names)
    named = {name for shown in family.pictures.values() for name in shown}
    named |= {name for pair in family.comparisons for name in (pair.better, pair.baseline)}
    assert named <= set(names)
    assert {name for shown in family.pictures.values() for name in shown} == set(names)


def test_ablations_of_tempflow_change_one_thing_each():
    family = FAMILIES["tiny-sd3"]
    plain, std, branching, weighting, both, seed = (
        of_name(family, name)
        for name in ("flow_grpo", "flow_grpo_global", "branching", "weighting", "tempflow", "tempflow_seed")
    )
    assert std.objective.advantage.std == "global"
    assert plain.objective.advantage.std == "group"
    assert (plain.sampling.plan.kind, branching.sampling.plan.kind) == ("plain", "branch")
    assert plain.objective == branching.objective
    assert weighting.sampling == plain.sampling
    assert weighting.objective.weight == both.objective.weight == "noise_aware"
    assert both.sampling == branching.sampling
    assert (both.objective.advantage.group_by, seed.objective.advantage.group_by) == ("prompt", "seed")


def test_ablations_of_b2_change_one_thing_each():
    family = FAMILIES["tiny-sd15"]
    plain, branching, intervals, both = (
        of_name(family, name) for name in ("ddpo", "ddpo_branching", "ddpo_intervals", "b2_diffurl")
    )
    parts = {"sampling", "objective", "training"}
    assert plain.model_dump(include=parts) == intervals.model_dump(include=parts)
    assert branching.model_dump(include=parts) == both.model_dump(include=parts)
    assert plain.curriculum is None
    assert intervals.curriculum == both.curriculum
    assert [branching.interval(stage) for stage in (0, 99)] == [range(6), range(6)]
    assert [both.interval(stage) for stage in (0, 99)] == [range(2, 6), range(6)]


def test_combination_has_branches_inside_intervals_and_their_extremes():
    family = FAMILIES["tiny-sd3"]
    seed, both = of_name(family, "tempflow_seed"), of_name(family, "tempflow_b2")
    assert both.sampling == seed.sampling
    assert both.objective.weight == "noise_aware"
    assert both.objective.advantage.selection is not None
    assert both.curriculum is not None


def test_unknown_method_is_named():
    with pytest.raises(ValueError, match="'flow' is no method of tiny-sd3; use one of: flow_grpo_global"):
        FAMILIES["tiny-sd3"].method("flow")


def test_changes_replace_keys_of_the_table():
    config = FAMILIES["tiny-sd3"].config("tempflow", seed=0, changes={"sampling.prompts_per_update": "2"})
    assert config.sampling.prompts_per_update == 2
