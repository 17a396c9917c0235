"""All sides of the benchmark of branched rollouts make the same samples."""

from __future__ import annotations

import json

import pytest

from benchmarks import bench_branched_rollout

SMALLEST = ["--steps", "3", "--children", "2", "--roots", "2", "--width", "8", "--depth", "1", "--rounds", "1"]


def test_sides_make_the_same_samples(capsys: pytest.CaptureFixture[str]):
    bench_branched_rollout.main(SMALLEST)
    results = json.loads(capsys.readouterr().out)["results"]
    assert set(results) == {"all", "early"}
    for figures in results.values():
        assert figures["max_abs_difference"] < 1e-5
        assert figures["ratio"] > 0
    # Branching at steps 0 and 1: a trunk of two steps, and two children each over what is left of three steps.
    assert results["all"]["engine_forwards"] == 2 * (2 + 2 * 2 + 2 * 1)
    assert results["all"]["one_by_one_forwards"] == 2 * (2 * 2) * 3
