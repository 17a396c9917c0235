"""Group advantages: golden numbers, invariances, and exact zeros where there is nothing to learn."""

from __future__ import annotations

import pytest
import torch

from difalign.objective.advantages import (
    StdMode,
    group_advantages,
    informative_rows,
    reward_std,
    scaled_advantage,
)

REWARDS = torch.tensor([1.0, 2.0, 3.0, 6.0, 5.0, 5.0, 5.0, 5.0])
GROUP = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
MODES: list[StdMode] = ["group", "global", "none"]


@pytest.mark.golden
def test_per_prompt_std_in_numbers() -> None:
    result = group_advantages(REWARDS, GROUP)
    expected = [-1.06898783, -0.53449391, 0, 1.60348174, 0, 0, 0, 0]
    assert result.advantage.tolist() == pytest.approx(expected, abs=1e-7)


@pytest.mark.golden
def test_global_std_in_numbers() -> None:
    result = group_advantages(REWARDS, GROUP, std="global")
    expected = [-1.20597266, -0.60298633, 0, 1.80895898, 0, 0, 0, 0]
    assert result.advantage.tolist() == pytest.approx(expected, abs=1e-7)


@pytest.mark.golden
def test_dance_grpo_in_numbers() -> None:
    result = group_advantages(REWARDS[:4], GROUP[:4], ddof=1, eps=1e-8)
    assert result.advantage.tolist() == pytest.approx([-0.9258, -0.4629, 0, 1.3887], abs=5e-5)


def test_without_a_std_rewards_are_only_centred() -> None:
    assert group_advantages(REWARDS, GROUP, std="none").advantage.tolist() == [-2, -1, 0, 3, 0, 0, 0, 0]


def test_statistics_are_those_of_the_groups_in_rising_order() -> None:
    result = group_advantages(REWARDS.flip(0), torch.tensor([9, 9, 9, 9, 3, 3, 3, 3]))
    assert result.group.tolist() == [3, 9]
    assert result.size.tolist() == [4, 4]
    assert result.mean.tolist() == [3.0, 5.0]
    assert result.std.tolist() == pytest.approx([3.5**0.5, 0.0])
    assert result.zero_variance.tolist() == [False, True]
    assert result.zero_variance_fraction == 0.5


@pytest.mark.parametrize("std", MODES)
def test_each_group_has_mean_zero(std: StdMode) -> None:
    rewards, group = torch.rand(240), torch.randint(0, 10, (240,))
    result = group_advantages(rewards, group, std=std)
    for identity in group.unique():
        assert abs(float(result.advantage[group == identity].double().mean())) < 1e-7  # stored in float32


@pytest.mark.parametrize("std", MODES)
def test_the_order_of_rows_and_the_names_of_groups_do_not_matter(std: StdMode) -> None:
    rewards, group = torch.rand(60), torch.arange(60) % 7
    order = torch.randperm(60)
    plain = group_advantages(rewards, group, std=std).advantage
    shuffled = group_advantages(rewards[order], 1000 - 3 * group[order], std=std).advantage
    torch.testing.assert_close(shuffled, plain[order], atol=1e-6, rtol=0)


def test_scale_and_offset_of_the_reward_act_only_through_eps() -> None:
    rewards, group = torch.rand(24 * 8), torch.arange(24 * 8) // 24
    plain = group_advantages(rewards, group).advantage
    torch.testing.assert_close(group_advantages(3 * rewards + 2, group).advantage, plain, atol=1e-3, rtol=0)
    without_eps = group_advantages(rewards, group, eps=0.0).advantage
    scaled = group_advantages(4 * rewards, group, eps=0.0).advantage  # a power of two: no rounding
    assert torch.equal(scaled, without_eps)
    assert not torch.equal(plain, without_eps)


@pytest.mark.parametrize("std", MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_rewards_give_exactly_zero(std: StdMode, dtype: torch.dtype) -> None:
    for size in (2, 3, 6, 7, 12, 24, 25):
        value = torch.rand(200, dtype=dtype) * 30  # 200 saturated groups of this size
        rewards, group = value.repeat_interleave(size), torch.arange(200).repeat_interleave(size)
        result = group_advantages(rewards, group, std=std, eps=1e-8)
        assert not result.advantage.any()
        assert result.zero_variance.all()


def test_rewards_count_as_the_float32_values_that_models_return() -> None:
    rewards = torch.tensor([0.1, 0.3], dtype=torch.float64)
    result = group_advantages(rewards, torch.tensor([0, 1]))
    assert result.mean.tolist() == rewards.float().tolist()
    assert reward_std(rewards) == reward_std(rewards.float())


def test_float32_statistics_would_not_give_zero() -> None:
    """The pitfall: in float32 with eps 1e-8, saturated groups get advantages of order 1 out of rounding."""
    rewards = (torch.rand(2000, 1) * 30).expand(2000, 12)
    naive = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-8)
    assert naive.abs().max() > 0.5


@pytest.mark.parametrize("std", MODES)
@pytest.mark.parametrize("ddof", [0, 1])
def test_a_single_row_has_no_advantage(std: StdMode, ddof: int) -> None:
    result = group_advantages(torch.tensor([1.0, 4.0, 2.0]), torch.tensor([0, 1, 1]), std=std, ddof=ddof)
    assert float(result.advantage[0]) == 0
    assert result.zero_variance.tolist() == [True, False]
    assert float(group_advantages(torch.tensor([3.0]), torch.tensor([5]), std=std, ddof=ddof).advantage) == 0


def test_a_gathered_std_makes_a_process_agree_with_the_whole() -> None:
    rewards, group = torch.rand(48), torch.arange(48) // 6
    whole = group_advantages(rewards, group, std="global").advantage
    overall = reward_std(rewards)
    parts = [
        group_advantages(rewards[rows], group[rows], std="global", global_std=overall).advantage
        for rows in (slice(0, 18), slice(18, 48))
    ]
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("ddof", [0, 1])
def test_reward_std_is_the_sample_std(ddof: int) -> None:
    rewards = torch.rand(50)
    assert reward_std(rewards, ddof=ddof) == pytest.approx(float(rewards.double().std(correction=ddof)), rel=1e-12)
    assert reward_std(rewards[:1], ddof=ddof) == 0.0


def test_the_clip_limits_both_sides() -> None:
    rewards = torch.cat([torch.zeros(49), torch.ones(1)])
    group = torch.zeros(50, dtype=torch.int64)
    advantage = group_advantages(rewards, group).advantage
    assert float(advantage.max()) > 5
    assert float(scaled_advantage(advantage, clip=5.0).max()) == 5.0
    assert float(scaled_advantage(-advantage, clip=5.0).min()) == -5.0


def test_the_scales_follow_the_sign_after_the_clip() -> None:
    advantage = torch.tensor([7.0, 0.5, 0.0, -0.5, -7.0])
    scaled = scaled_advantage(advantage, clip=5.0, positive_scale=2.0, negative_scale=0.1)
    assert scaled.tolist() == pytest.approx([10.0, 1.0, 0.0, -0.05, -0.5])
    with pytest.raises(ValueError, match="clip must be positive, got 0"):
        scaled_advantage(advantage, clip=0.0)


# ------------------------------------------------------------------------------------------------ filtering
def test_informative_rows_are_those_with_an_advantage() -> None:
    assert informative_rows(group_advantages(REWARDS, GROUP).advantage).tolist() == [0, 1, 3]
    assert informative_rows(torch.zeros(4)).tolist() == []


# ----------------------------------------------------------------------------------------------- bad input
def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"rows \[1\]"):
        group_advantages(torch.tensor([1.0, float("nan")]), torch.tensor([0, 0]))
    with pytest.raises(ValueError, match="non-empty"):
        group_advantages(torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(ValueError, match="equal"):
        group_advantages(torch.zeros(3), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="'batch'"):
        group_advantages(REWARDS, GROUP, std="batch")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="global_std"):
        group_advantages(REWARDS, GROUP, global_std=1.0)
