"""Extremes of groups: thresholds on the right side, first of equals, pairs; and histories of stages."""

from __future__ import annotations

import pytest
import torch

from difalign.objective.advantages import standardised_advantages
from difalign.objective.selection import extremes
from difalign.objective.stage_history import StageHistory

FIRST, SECOND = [0.20, 0.22, 0.24, 0.26, 0.28], [0.26, 0.26, 0.27, 0.25, 0.21]


def z_scores(history: StageHistory, rewards: list[float]) -> torch.Tensor:
    group = torch.zeros(len(rewards), dtype=torch.int64)
    return standardised_advantages(torch.tensor(rewards), group, [history.measure("p")], eps=1e-8).advantage


def two_stages() -> tuple[torch.Tensor, torch.Tensor]:
    history = StageHistory()
    history.add({"p": FIRST})
    before = z_scores(history, FIRST)
    history.add({"p": SECOND})
    return before, z_scores(history, SECOND)


@pytest.mark.golden
def test_z_scores_of_two_stages() -> None:
    """B2-DiffuRL: unbiased spread over this stage and those before it."""
    before, after = two_stages()
    assert before.tolist() == pytest.approx([-1.26491, -0.63246, 0, 0.63246, 1.26491], abs=1e-5)
    assert after.tolist() == pytest.approx([0.56032, 0.56032, 0.93386, 0.18677, -1.30740], abs=1e-5)
    history = StageHistory()
    history.add({"p": FIRST})
    history.add({"p": SECOND})
    found = history.measure("p")
    assert (found.count, found.mean, found.std) == pytest.approx((10, 0.245, 0.0267706), abs=1e-7)


@pytest.mark.golden
def test_selection_of_two_stages() -> None:
    before, after = two_stages()
    group = torch.zeros(5, dtype=torch.int64)
    first = extremes(before, group, positive=0.5, negative=-0.5)
    assert (first.positive.tolist(), first.negative.tolist()) == ([4], [0])
    second = extremes(after, group, positive=0.5, negative=-0.5)
    assert (second.positive.tolist(), second.negative.tolist()) == ([2], [4])
    assert second.pairs.tolist() == [[2, 4]]


def test_the_upper_threshold_is_kept_and_the_lower_is_not() -> None:
    advantage = torch.tensor([0.5, 0.0, -0.5, 0.49, -0.51])
    group = torch.tensor([0, 0, 0, 1, 1])
    found = extremes(advantage, group, positive=0.5, negative=-0.5)
    assert found.positive.tolist() == [0]
    assert found.negative.tolist() == [4]
    assert found.rows.tolist() == [0, 4]
    assert found.pairs.tolist() == []


def test_groups_in_any_order_and_the_first_of_equals() -> None:
    advantage = torch.tensor([1.0, 3.0, 3.0, -1.0, 2.0, -1.0, 7.0])
    group = torch.tensor([5, 2, 2, 5, 5, 2, 5])
    found = extremes(advantage, group)
    assert found.best.tolist() == [1, 6]  # of groups 2 and 5
    assert found.worst.tolist() == [5, 3]
    assert found.pairs.tolist() == [[1, 5], [6, 3]]


def test_it_agrees_with_a_loop() -> None:
    advantage = torch.randint(-3, 4, (200,)).float()
    group = torch.randint(0, 17, (200,))
    found = extremes(advantage, group, positive=2.0, negative=-2.0)
    for place, number in enumerate(torch.unique(group).tolist()):
        rows = (group == number).nonzero().flatten()
        values = advantage[rows]
        assert found.best[place] == rows[values.argmax()]
        assert found.worst[place] == rows[values.argmin()]
        assert bool(found.keep_best[place]) == (float(values.max()) >= 2)
        assert bool(found.keep_worst[place]) == (float(values.min()) < -2)


def test_a_group_without_differences_has_no_pair() -> None:
    found = extremes(torch.zeros(4), torch.zeros(4, dtype=torch.int64))
    assert (found.best.tolist(), found.worst.tolist()) == ([0], [0])
    assert found.pairs.numel() == 0
    assert found.rows.tolist() == [0]


def test_thresholds_may_keep_nothing() -> None:
    found = extremes(torch.randn(9), torch.arange(9) // 3, positive=100.0, negative=-100.0)
    assert found.rows.tolist() == []
    assert found.pairs.tolist() == []


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"equal vectors, got \(3,\), \(2,\)"):
        extremes(torch.zeros(3), torch.zeros(2, dtype=torch.int64))


# --- histories of stages -------------------------------------------------------------------------------------------


def test_eight_stages_before_the_newest_count_whether_or_not_a_prompt_was_drawn() -> None:
    history = StageHistory(stages=8)
    for stage in range(12):
        history.add({"always": [float(stage)], **({"early": [1.0, 2.0]} if stage < 5 else {})})
    assert history.measure("always").count == 9
    assert history.measure("always").mean == pytest.approx(sum(range(3, 12)) / 9)
    assert history.measure("early").count == 4  # of stages 3 and 4
    history.add({"always": [0.0]})
    history.add({"always": [0.0]})
    with pytest.raises(ValueError, match="at least one"):
        history.measure("early")


def test_without_earlier_stages_only_the_newest_counts() -> None:
    history = StageHistory(stages=0)
    history.add({"p": FIRST})
    history.add({"p": SECOND})
    assert history.measure("p").mean == pytest.approx(0.25)
    with pytest.raises(ValueError, match="got -1"):
        StageHistory(stages=-1)


def test_a_restored_history_goes_on_alike() -> None:
    history, again = StageHistory(stages=2), StageHistory(stages=2)
    for stage in range(4):
        history.add({"p": [float(stage), 1.0], str(stage): [2.0]})
    again.restore(history.rewards)
    for each in (history, again):
        each.add({"p": [9.0]})
    assert again.rewards == history.rewards
    assert again.measure("p") == history.measure("p")


def test_scale_and_offset_of_the_reward_do_not_matter() -> None:
    """Neither against the newest stage alone nor against those before it, and so the same rows are kept."""
    plain, moved = StageHistory(), StageHistory()
    for stage in (FIRST, SECOND):
        other = [4 * reward + 2 for reward in stage]
        plain.add({"p": stage})
        moved.add({"p": other})
        expected, found = z_scores(plain, stage), z_scores(moved, other)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)  # rewards are float32
        group = torch.zeros(len(stage), dtype=torch.int64)
        kept = [extremes(z, group, positive=0.5, negative=-0.5).rows.tolist() for z in (expected, found)]
        assert kept[0] == kept[1]
