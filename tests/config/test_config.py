"""Derived numbers, contradictions, and that every key can be suggested."""

from __future__ import annotations

import pytest

from difalign.core.config import RunConfig
from difalign.core.config_errors import key_paths
from difalign.core.errors import ConfigError
from difalign.core.overrides import load_config


def config(*settings: str) -> RunConfig:
    return load_config(None, settings)


@pytest.mark.parametrize(
    ("steps", "fraction", "trained"), [(10, 0.99, 9), (10, 1.0, 10), (100, 0.29, 29), (8, 0.5, 4), (100, 0.99, 99)]
)
def test_trainable_steps(steps: int, fraction: float, trained: int):
    made = config(f"sampling.steps={steps}", f"objective.timestep_fraction={fraction}")
    assert made.trainable_steps == trained
    assert made.branch_steps == min(trained, steps - 1)


@pytest.mark.parametrize(
    ("plan", "by", "size"),
    [
        ("{kind: plain}", "prompt", 4),
        ("{kind: window}", "prompt", 4),
        ("{kind: branch, children: 6}", "seed", 6),
        ("{kind: branch, children: 6}", "prompt", 24),
        ("{kind: split, at: 2, children: 3}", "seed", 3),
        ("{kind: cascade, at: [0, 3, 6], children: 2}", "seed", 8),
        ("{kind: cascade, at: [0, 3, 6], children: 2}", "prompt", 32),
    ],
)
def test_group_size(plan: str, by: str, size: int):
    made = config("sampling.samples_per_prompt=4", f"sampling.plan={plan}", f"objective.advantage.group_by={by}")
    assert made.group_size == size


@pytest.mark.parametrize(("statistics", "size"), [("group", 3), ("rollout", 3 * 5 * 2), ("prompt_history", 16)])
def test_size_of_what_a_reward_is_compared_with(statistics: str, size: int):
    made = config(
        "sampling.samples_per_prompt=3",
        "sampling.prompts_per_update=5",
        "training.updates_per_rollout=2",
        f"objective.advantage.statistics={statistics}",
    )
    assert made.group_size == size


@pytest.mark.parametrize("statistics", ["rollout", "prompt_history"])
def test_one_sample_a_prompt_will_do_where_it_is_compared_with_others(statistics: str):
    assert config("sampling.samples_per_prompt=1", f"objective.advantage.statistics={statistics}")


def test_geometry():
    made = config("sampling.prompts_per_update=6", "training.updates_per_rollout=2", "sampling.samples_per_prompt=5")
    assert made.prompts_per_rollout == 12
    assert made.roots_per_prompt == 5
    assert config("sampling.same_latent=true", "sampling.samples_per_prompt=5").roots_per_prompt == 1


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["sampling.rule=ddim_eta", "objective.timestep_fraction=1.0"], "includes the last step"),
        (["sampling.rule=ddim_eta", "sampling.noise_level=1.01"], "at most 1"),
        (["objective.surrogate=score_function"], r"updates_per_rollout = 2 later updates learn from .* older one"),
        (
            ["objective.surrogate=score_function", "training.updates_per_rollout=1", "training.inner_epochs=3"],
            r"inner_epochs = 3 later updates .* surrogate=clipped",
        ),
        (
            ["objective.surrogate=score_function", "training.updates_per_rollout=1", "objective.ratio=ratio_norm"],
            "whose loss has no such ratio; use objective.ratio=plain",
        ),
        (["objective.ratio=ratio_norm", "objective.log_prob=squared_error"], "use objective.log_prob=gaussian"),
        (["objective.advantage={statistics: rollout, std: global}"], "brings its own std; use std=group"),
        (["objective.advantage={statistics: prompt_history, group_by: seed}"], "has no effect.*use group_by=prompt"),
        (["objective.advantage={history: {min_count: 8}}"], "has no effect.*use statistics=prompt_history"),
        (
            ["objective.advantage={statistics: prompt_history, history: {min_count: 17}}"],
            "is never reached.*use buffer_size=17",
        ),
        (["sampling.plan={kind: split, at: 9}"], "use at most 8"),
        (["sampling.plan={kind: split}"], r"at = null.*use sampling.plan.at=3"),
        (["sampling.steps=20", "curriculum.first=21", "curriculum.last=22"], "longer than the chain.*use at most 20"),
        (["curriculum={first: 5, last: 4}"], "longer than last = 4"),
        (["curriculum={first: 5, last: 9, lengths: [3]}"], "no effect with schedule = linear_floor"),
        (["curriculum={schedule: list}"], "needs one length a stage"),
        (["curriculum={schedule: list, lengths: [9, 11]}"], r"curriculum.lengths = 11: .*longer than the chain"),
        (["curriculum={first: 1, last: 9}"], "hold no step to train, .* steps 0 to 8 .* use at least 2"),
        (
            ["curriculum={first: 2, last: 9}", "sampling.plan={kind: branch}", "objective.timestep_fraction=0.8"],
            "steps 0 to 7 .* use at least 3",
        ),
        (["curriculum={first: 5, last: 9}", "sampling.plan={kind: window}"], "already says which steps"),
        (["objective.advantage={history: {stages: 3}}"], "has no effect.*use statistics=stage_history"),
        (
            ["objective.advantage={statistics: stage_history, history: {min_count: 3}}"],
            "has no effect.*statistics=prompt_history",
        ),
        (["objective.advantage.selection={positive: -0.6, negative: -0.5}"], "could be best and worst.*negative=-0.6"),
        (
            ["objective.advantage={statistics: rollout, group_by: seed, selection: {}}"],
            r"selection: picks .* a group is one sample .* children >= 2",
        ),
        (["objective.surrogate=pair", "training.micro_batch=1"], "micro_batch=2 or more"),
        (["objective.surrogate=pair", "objective.advantage.positive_scale=2.0"], "better and worse only"),
        (["objective.pair.beta=0.5"], "use objective.surrogate=pair"),
        (
            ["training.trajectories_per_update=8"],
            "use training.updates_per_rollout=1 and sampling.prompts_per_update=48",
        ),
        (["training.tail=drop"], "nothing is left over"),
        (
            ["objective.surrogate=score_function", "training={updates_per_rollout: 1, trajectories_per_update: 8}"],
            "trajectories_per_update = 8 later updates",
        ),
        (["sampling.plan={kind: cascade, at: [3, 1]}"], r"must rise; use \[1, 3\]"),
        (["sampling.plan={kind: cascade, at: [0, 9]}"], "use at most 8"),
        (["sampling.plan={kind: branch, mode: early_k, k: 10}"], "use at most 9"),
        (["sampling.plan={kind: branch, children: 1}", "objective.advantage.group_by=seed"], "children >= 2"),
        (["sampling.plan={kind: split, at: 3}", "sampling.same_latent=true"], "same_latent=false"),
        (["training.rollouts=3", "training.updates_per_rollout=2"], "only 6 updates.*ema.enabled=false"),
        (["rewards.verifier.weight=0.0"], "every weight is 0"),
        (["objective.advantage.eps=0.0", "objective.filter_zero_variance=false"], "eps=1e-4"),
    ],
)
def test_contradictions_are_refused_with_a_remedy(settings: list[str], said: str):
    with pytest.raises(ConfigError, match=said):
        config(*settings)


@pytest.mark.parametrize(
    "settings",
    [
        ["sampling.rule=cps", "sampling.noise_level=1.0"],
        ["objective.kl.kind=gaussian"],  # measured, not optimised
        ["sampling.plan={kind: branch, children: 1}"],
        ["sampling.plan={kind: branch, children: 2}", "sampling.samples_per_prompt=1"],
        ["sampling.plan={kind: window, size: 9, high: 9}"],
        ["objective.advantage.eps=0.0"],
        ["training.rollouts=4", "training.updates_per_rollout=2"],
        ["training.rollouts=1", "training.ema.enabled=false"],
    ],
)
def test_sound_combinations_pass(settings: list[str]):
    assert config(*settings)


PLAN_OF = {"mode": "branch", "children": "branch", "train_prefix": "split", "last_step_noise": "plain"}


@pytest.mark.parametrize("path", [path for path in key_paths(RunConfig) if len(path.rsplit(".", 1)[-1]) > 3])
def test_every_key_is_suggested_when_its_last_letter_is_lost(path: str):
    settings = [f"{path[:-1]}=1"]
    if path.startswith("sampling.plan.") and path != "sampling.plan.kind":
        settings.append(f"sampling.plan.kind={PLAN_OF.get(path.removeprefix('sampling.plan.'), 'window')}")
    with pytest.raises(ConfigError) as error:
        config(*settings)
    if path == "sampling.plan.kind":
        assert "sampling.plan.kind: missing" in str(error.value)
    else:
        assert f"did you mean {path}" in str(error.value)


def test_rewards_are_closed_but_their_names_are_free():
    assert set(config("rewards.anything.weight=2").rewards) == {"anything"}
    with pytest.raises(ConfigError, match=r"rewards\.x\.options\.a = \[1\]: must be text or"):
        config("rewards.x.options.a=[1]")
