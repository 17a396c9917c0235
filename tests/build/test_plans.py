"""Configured plans are the engine's plans; nothing beyond the trainable steps is recorded."""

from __future__ import annotations

import pytest

from difalign.build.plans import build_plans, window_at
from difalign.core.config_plans import WindowPlan
from difalign.core.overrides import load_config
from difalign.core.types import Plan
from difalign.rollout import plans


def built(plan: str, *settings: str, rollout: int = 0) -> tuple[Plan, ...]:
    config = load_config(None, ["sampling.steps=10", f"sampling.plan={plan}", *settings])
    return build_plans(config, rollout=rollout)


def recorded(plan: Plan) -> list[int]:
    return [step for step, entry in enumerate(plan) if entry.record]


def test_plain_is_flow_grpo():
    (plan,) = built("{kind: plain}")
    assert plan == plans.plain(10, 0.7, last_step_noise=True)
    assert recorded(plan) == list(range(9))
    (plan,) = built("{kind: plain}", "objective.timestep_fraction=0.5")
    assert recorded(plan) == [0, 1, 2, 3, 4]
    assert all(entry.noise_level == 0.7 for entry in plan)


def test_same_latent_forks_at_once():
    (plan,) = built("{kind: plain}", "sampling.same_latent=true", "sampling.samples_per_prompt=5")
    assert [entry.fan_out for entry in plan] == [5] + [1] * 9


def test_branch_modes():
    everywhere = built("{kind: branch, children: 6}")
    assert everywhere == plans.branch(10, 0.7, children=6, at=range(9))
    early = built("{kind: branch, children: 6, mode: early_k, k: 3}")
    assert early == everywhere[:3]
    sampled = [built("{kind: branch, mode: sampled_k, k: 2}", rollout=r) for r in range(6)]
    assert len(set(sampled)) > 1
    assert sampled[4] == built("{kind: branch, mode: sampled_k, k: 2}", rollout=4)
    half = built("{kind: branch}", "objective.timestep_fraction=0.5")
    assert [recorded(plan) for plan in half] == [[0], [1], [2], [3], [4]]


def test_split_and_cascade():
    (plan,) = built("{kind: split, at: 4, children: 3}")
    assert plan == plans.split(10, 0.7, at=4, children=3)
    (plan,) = built("{kind: cascade, at: [0, 3], children: 2}")
    assert recorded(plan) == list(range(9))  # the last step is noisy, and left out by timestep_fraction
    (plan,) = built("{kind: cascade, at: [0, 3], children: 2}", "objective.timestep_fraction=1.0")
    assert plan == plans.cascade(10, 0.7, at=[0, 3], children=2, last_step_noise=True)


def test_plans_follow_the_interval_of_the_rollout():
    """The last 4 to 10 of 10 steps, of which the last is never trained on."""
    grow = ("curriculum={first: 4, last: 10, stages: 7}",)
    for rollout in (0, 3, 6, 50):
        start = 6 - min(rollout, 6)
        (plan,) = built("{kind: split, children: 3}", *grow, rollout=rollout)
        assert plan == plans.split(10, 0.7, at=start, children=3)
        branches = built("{kind: branch, children: 3}", *grow, rollout=rollout)
        assert branches == plans.branch(10, 0.7, children=3, at=range(start, 9))
        early = built("{kind: branch, mode: early_k, k: 4, children: 3}", *grow, rollout=rollout)
        assert early == branches[:4]
        sampled = built("{kind: branch, mode: sampled_k, k: 2, children: 3}", *grow, rollout=rollout)
        assert len(sampled) == 2
        assert set(sampled) <= set(branches)
        (plan,) = built("{kind: plain}", *grow, rollout=rollout)
        assert recorded(plan) == list(range(start, 9))
        assert all(entry.noise_level == 0.7 for entry in plan)
    (fixed,) = built("{kind: split, at: 2, children: 3}", *grow)
    assert [entry.fan_out for entry in fixed].index(3) == 2
    assert recorded(fixed) == [6, 7, 8]


@pytest.mark.parametrize("strategy", ["fixed", "random", "progressive", "decay", "exp_decay"])
def test_windows_stay_between_low_and_high(strategy: str):
    plan = WindowPlan.model_validate(
        {"kind": "window", "size": 3, "low": 2, "high": 8, "strategy": strategy, "shift_every": 4}
    )
    spans = [window_at(plan, seed=0, rollout=r) for r in range(60)]
    assert all(start >= 2 and 1 <= size <= 3 and start + size <= 8 for start, size in spans)
    assert (len(set(spans)) == 1) is (strategy == "fixed")


def test_progressive_window_moves_every_few_rollouts_and_returns():
    plan = WindowPlan(kind="window", size=2, low=1, high=4, strategy="progressive", shift_every=2)
    assert [window_at(plan, seed=0, rollout=r) for r in range(7)] == [
        (1, 2),
        (1, 2),
        (2, 2),
        (2, 2),
        (3, 1),
        (3, 1),
        (1, 2),
    ]
