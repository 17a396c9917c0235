"""Advantages against what is kept of every prompt: golden numbers, invariances, and the restored history."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

from difalign.objective.advantages import Moments, moments, standardised_advantages
from difalign.objective.prompt_history import PromptHistory


def advantages(history: PromptHistory, prompts: list[str], rewards: list[float]) -> list[float]:
    """One rollout: all rewards are added, then each is measured."""
    names, values = sorted(set(prompts)), torch.tensor(rewards)
    for name in names:
        history.add(name, [r for p, r in zip(prompts, rewards, strict=True) if p == name])
    whole = moments(values)
    measures = [history.measure(name, otherwise=whole) for name in names]
    group = torch.tensor([names.index(p) for p in prompts])
    return standardised_advantages(values, group, measures, eps=1e-6).advantage.tolist()


def z(value: float, kept: list[float]) -> float:
    mean = sum(kept) / len(kept)
    return (value - mean) / ((sum((k - mean) ** 2 for k in kept) / len(kept)) ** 0.5 + 1e-6)


@pytest.mark.golden
def test_with_few_rewards_a_prompt_is_measured_against_the_rollout() -> None:
    result = advantages(PromptHistory(), ["a", "b", "a", "b"], [1.0, 2.0, 3.0, 10.0])
    assert result == pytest.approx([-0.84853, -0.56569, -0.28284, 1.69706], abs=1e-5)


def test_at_the_minimum_count_a_prompt_is_measured_against_its_own() -> None:
    history = PromptHistory(buffer_size=4, min_count=3)
    assert advantages(history, ["a", "a", "b"], [1.0, 2.0, 6.0]) == pytest.approx(
        [z(v, [1, 2, 6]) for v in (1, 2, 6)], abs=1e-6
    )
    # Now "a" has three, its new one among them; "b" has two.
    result = advantages(history, ["a", "b"], [6.0, 0.0])
    assert result == pytest.approx([z(6, [1, 2, 6]), z(0, [6, 0])], abs=1e-6)


def test_the_oldest_reward_leaves_first() -> None:
    history = PromptHistory(buffer_size=3, min_count=2)
    advantages(history, ["a", "a", "a"], [9.0, 1.0, 2.0])
    assert advantages(history, ["a"], [4.0]) == pytest.approx([z(4, [1, 2, 4])], abs=1e-6)
    assert history.rewards == {"a": [1.0, 2.0, 4.0]}


def test_prompts_that_a_rollout_leaves_out_are_kept() -> None:
    history = PromptHistory(buffer_size=4, min_count=2)
    advantages(history, ["a", "a"], [1.0, 2.0])
    for _ in range(5):
        advantages(history, ["b", "b"], [5.0, 7.0])
    assert advantages(history, ["a"], [3.0]) == pytest.approx([z(3, [1, 2, 3])], abs=1e-6)


def test_an_easy_prompt_is_no_advantage_once_it_is_known() -> None:
    history = PromptHistory(buffer_size=8, min_count=4)
    prompts, rewards = ["easy", "easy", "hard", "hard"], [0.8, 1.0, 0.0, 0.2]
    assert advantages(history, prompts, rewards)[0] > 0.5
    advantages(history, prompts, rewards)  # now each has four
    assert advantages(history, prompts, rewards) == pytest.approx([-1, 1, -1, 1], abs=1e-4)


def test_scale_and_offset_of_the_reward_do_not_matter() -> None:
    prompts, rewards = ["a", "b", "a", "a", "b", "b"], [0.5, 0.25, 1.0, 0.125, 0.75, 0.0]
    plain, moved = PromptHistory(buffer_size=9, min_count=5), PromptHistory(buffer_size=9, min_count=5)
    for _ in range(3):  # first against the rollout, then against the history
        expected = advantages(plain, prompts, rewards)
        assert advantages(moved, prompts, [4 * r + 2 for r in rewards]) == pytest.approx(expected, abs=1e-5)


def test_equal_rewards_give_exactly_zero() -> None:
    history = PromptHistory(buffer_size=7, min_count=3)
    for _ in range(3):
        assert advantages(history, ["a"] * 3, [0.1] * 3) == [0, 0, 0]


def test_a_history_goes_on_from_json_to_the_last_bit() -> None:
    history = PromptHistory(buffer_size=6, min_count=4)
    prompts = ["a", "b", "c"] * 4
    first, second = torch.rand(12).tolist(), torch.rand(12).tolist()
    advantages(history, prompts, first)
    again = PromptHistory(buffer_size=6, min_count=4)
    again.add("elsewhere", [1.0])
    again.restore(json.loads(json.dumps(history.rewards)))
    assert advantages(again, prompts, second) == advantages(history, prompts, second)
    assert "elsewhere" not in again.rewards


def test_a_smaller_buffer_keeps_the_newest() -> None:
    history = PromptHistory(buffer_size=3, min_count=2)
    history.restore({"a": [1.0, 2.0, 3.0, 4.0]})
    assert history.rewards == {"a": [2.0, 3.0, 4.0]}


@pytest.mark.parametrize(("buffer_size", "min_count"), [(16, 17), (16, 1), (1, 1)])
def test_a_count_that_is_never_reached_is_refused(buffer_size: int, min_count: int) -> None:
    with pytest.raises(ValueError, match=rf"min_count must lie in \[2, buffer_size = {buffer_size}\], got {min_count}"):
        PromptHistory(buffer_size=buffer_size, min_count=min_count)


# ------------------------------------------------------------------------------------- given moments
def row(*values: float) -> Tensor:
    return torch.tensor(values)


@pytest.mark.parametrize("ddof", [0, 1])
def test_moments_are_those_of_the_sample(ddof: int) -> None:
    values = torch.rand(40)
    found = moments(values, ddof=ddof)
    assert found.count == 40
    assert found.mean == pytest.approx(float(values.double().mean()), rel=1e-12)
    assert found.std == pytest.approx(float(values.double().std(correction=ddof)), rel=1e-12)
    assert moments(values[:1], ddof=ddof).std == 0


def test_each_group_has_its_own_moments_and_eps() -> None:
    measures = [Moments(9, mean=1.0, std=2.0), Moments(4, mean=0.0, std=0.0), Moments(7, mean=-1.0, std=0.25)]
    result = standardised_advantages(row(2, 5, 0, 0), torch.tensor([0, 0, 2, 1]), measures, eps=0.5)
    assert result.advantage.tolist() == pytest.approx([0.4, 1.6, 4 / 3, 0.0])
    assert result.group.tolist() == [0, 1, 2]
    assert result.size.tolist() == [9, 4, 7]
    assert result.zero_variance.tolist() == [False, True, False]


def test_bad_input_is_named() -> None:
    group = torch.tensor([0, 1])
    with pytest.raises(ValueError, match="spans 0 to 1 but there are 1"):
        standardised_advantages(row(1, 2), group, [Moments(2, 0.0, 1.0)])
    with pytest.raises(ValueError, match=r"rows \[0\]"):
        standardised_advantages(row(float("nan"), 2), group, [Moments(2, 0.0, 1.0)] * 2)
    with pytest.raises(ValueError, match="finite and at least one"):
        moments(row())
