"""Units of rewards: running moments are those of all scores at once; places and z-scores stay within a prompt."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from difalign.objective.reward_scales import RunningMoments, prompt_ranks, prompt_scores

NAN = float("nan")


@pytest.mark.parametrize("cuts", [[], [1], [3, 4, 40], list(range(1, 50))])
def test_running_moments_are_those_of_everything_at_once(cuts):
    scores = np.random.default_rng(0).normal(200.0, 0.01, 50)
    running = RunningMoments()
    for part in np.split(scores, cuts):
        running.add(part.tolist())
    assert running.count == 50
    assert running.mean == pytest.approx(scores.mean(), rel=1e-14)
    assert running.std == pytest.approx(scores.std(), rel=1e-9)


def test_it_does_not_matter_who_had_which_score():
    scores = np.random.default_rng(1).normal(size=31).tolist()
    one, other = RunningMoments(), RunningMoments()
    one.add(scores)
    other.add(scores[::2] + scores[1::2])
    assert one.state() == other.state()


def test_running_unit_is_centred_and_has_unit_spread_once_there_is_one():
    running = RunningMoments()
    running.add([3.0, 3.0])
    assert running.scaled(torch.tensor([3.0, 5.0])).tolist() == [0.0, 2.0]  # no spread to divide by
    running.add([5.0, 5.0])
    assert running.scaled(torch.tensor([3.0, 5.0])).tolist() == [-1.0, 1.0]
    restored = RunningMoments(*running.state())
    assert restored == running


def test_nothing_added_changes_nothing():
    running = RunningMoments()
    running.add([])
    assert running.state() == [0.0, 0.0, 0.0]
    assert running.std == 0.0


PROMPT = torch.tensor([7, 2, 7, 7, 2, 7, 9])
SCORES = torch.tensor([0.1, 5.0, 0.3, 0.3, 5.0, NAN, 1.0])


def test_places_are_shared_by_equals_and_not_taken_by_what_has_no_score():
    ranks = prompt_ranks(SCORES, PROMPT)
    assert ranks[torch.arange(7) != 5].tolist() == [0.0, 0.5, 0.75, 0.75, 0.5, 0.5]
    assert math.isnan(ranks[5])


def test_places_are_blind_to_any_rising_change_of_unit():
    scores = torch.randn(40, generator=torch.Generator().manual_seed(2))
    prompt = torch.arange(40) % 5
    ranks = prompt_ranks(scores, prompt)
    assert torch.equal(prompt_ranks((3 * scores).exp(), prompt), ranks)
    torch.testing.assert_close(prompt_ranks(-scores, prompt), 1 - ranks)
    for each in range(5):
        assert sorted(ranks[prompt == each].tolist()) == pytest.approx([i / 7 for i in range(8)])


def test_scores_within_a_prompt_have_mean_zero_and_unit_spread():
    scores = torch.randn(40, generator=torch.Generator().manual_seed(3)) * 7 + 100
    prompt = torch.arange(40) % 4
    standard = prompt_scores(scores, prompt, eps=0.0)
    for each in range(4):
        assert float(standard[prompt == each].mean()) == pytest.approx(0.0, abs=1e-6)
        assert float(standard[prompt == each].std(correction=0)) == pytest.approx(1.0, rel=1e-6)
    standard = prompt_scores(SCORES, PROMPT, eps=1.0)
    assert standard[[1, 4, 6]].tolist() == [0.0, 0.0, 0.0]
    assert math.isnan(standard[5])
    three = np.array([0.1, 0.3, 0.3])
    assert float(standard[0]) == pytest.approx((0.1 - three.mean()) / (three.std() + 1.0), rel=1e-6)
