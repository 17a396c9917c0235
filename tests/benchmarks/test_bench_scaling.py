"""The benchmark of processes times what it says, and both sides learn the same."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import bench_scaling
from benchmarks.bench_scaling import Finished, compare, seconds_a_rollout


def test_the_first_rollout_and_what_comes_before_are_not_timed():
    rows = [{"rollout": n // 2, "seconds": 10.0 + 3.0 * (n // 2) + 0.1 * (n % 2)} for n in range(8)]
    assert seconds_a_rollout(rows) == pytest.approx(3.0)
    with pytest.raises(ValueError, match="use --rollouts 2 or more"):
        seconds_a_rollout(rows[:2])


def test_the_fastest_round_of_each_side_counts():
    one = [Finished(4.0, (0.5, 0.6), {"a": torch.zeros(2)}), Finished(5.0, (0.5, 0.6), {"a": torch.zeros(2)})]
    two = [Finished(3.0, (0.5, 0.5), {"a": torch.tensor([0.0, 0.25])}), Finished(2.0, (0.5, 0.6), {})]
    figures = compare(one, two)
    assert (figures["ratio"], figures["speedup"]) == (0.5, 2.0)
    assert figures["max_reward_difference"] == pytest.approx(0.1)
    assert figures["max_weight_difference"] == 0.25


@pytest.mark.slow
@pytest.mark.multiproc
def test_two_processes_learn_what_one_learns(capsys: pytest.CaptureFixture[str]):
    bench_scaling.main(["--rounds", "1", "--rollouts", "2", "--prompts", "3", "--samples", "4", "--heldout", "2"])
    results = json.loads(capsys.readouterr().out)["results"]
    assert results["ratio"] > 0
    assert results["max_reward_difference"] < 1e-4
    assert results["max_weight_difference"] < 1e-5
