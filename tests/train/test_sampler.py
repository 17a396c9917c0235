"""Which prompts a rollout gets: whole groups, every prompt in turn, the same everywhere."""

from __future__ import annotations

from collections import Counter

import pytest

from difalign.train.sampler import rollout_prompts, split_groups


def draw(rollout: int, *, seed: int = 0, num: int = 50, updates: int = 2, per_update: int = 6) -> list[list[int]]:
    return rollout_prompts(num, updates=updates, prompts_per_update=per_update, seed=seed, rollout=rollout)


def test_shape_and_distinctness() -> None:
    for rollout in range(20):
        updates = draw(rollout)
        assert [len(update) for update in updates] == [6, 6]
        flat = [index for update in updates for index in update]
        assert len(set(flat)) == 12
        assert set(flat) <= set(range(50))


def test_a_pass_meets_no_prompt_twice_and_many_passes_meet_all_alike() -> None:
    per_pass = 50 // 12
    one_pass = [index for rollout in range(per_pass) for update in draw(rollout) for index in update]
    assert len(set(one_pass)) == len(one_pass) == 48
    counts = Counter(i for rollout in range(per_pass * 200) for update in draw(rollout) for i in update)
    assert set(counts) == set(range(50))
    assert max(counts.values()) - min(counts.values()) < 30  # each left out of a pass with probability 2/50


def test_pure_function_of_seed_and_rollout() -> None:
    assert draw(3) == draw(3)
    assert draw(3) != draw(4)
    assert draw(3) != draw(3, seed=1)


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_processes_share_whole_groups_evenly(world) -> None:
    items = draw(0)[0]
    shares = [split_groups(items, rank=rank, world=world) for rank in range(world)]
    assert sorted(i for share in shares for i in share) == sorted(items)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_over_all_processes_every_prompt_is_met_as_often_as_asked_from_the_first_rollout_on() -> None:
    """The published geometry: 32 processes of 9 rows make 288 rows, 12 prompts of 24 samples each."""
    epochs = []
    for rollout in (0, 1, 2):
        (chosen,) = draw(rollout, num=100, updates=1, per_update=12)
        rows = [prompt for rank in range(32) for prompt in split_groups(chosen, rank=rank, world=32) for _ in range(24)]
        assert len(rows) == 32 * 9
        assert {rows.count(prompt) for prompt in chosen} == {24}
        epochs.append(set(chosen))
    assert not epochs[0] & epochs[1]
    assert not epochs[1] & epochs[2]


def test_too_few_prompts() -> None:
    with pytest.raises(ValueError, match="needs 12 distinct prompts but the list has 11"):
        draw(0, num=11)
