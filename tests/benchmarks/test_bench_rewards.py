"""The benchmark of scorers times what it says, on the smallest of everything."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from benchmarks import bench_rewards, random_scorers


@pytest.mark.filterwarnings("ignore:clip reads 12 tokens")  # the shipped tiny CLIP has short captions
def test_a_line_holds_speeds_and_gains(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arguments = ["--scorers", "verifier", "tiny-clip", "--batches", "2", "1", "--rounds", "1"]
    bench_rewards.main([*arguments, "--output", str(tmp_path / "rewards.jsonl")])
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line == json.loads((tmp_path / "rewards.jsonl").read_text())
    found = line["results"]["scorers"]
    assert set(found["verifier"]["images_per_second"]) == {"1", "2"}
    assert "gain" not in found["verifier"]  # no network reads its captions
    assert set(found["tiny-clip"]["gain"]) == {"new_text_batched", "new_text_one_by_one"}
    assert found["tiny-clip"]["gain_batch"] == 2


def test_a_batch_that_would_take_too_long_is_left_out():
    ticks = itertools.count(step=5.0)
    scorer = bench_rewards.load("verifier", side=36, real_size=False, device="cpu")
    figures = bench_rewards.measure(
        scorer, batches=[1, 8], rounds=1, limit=60.0, device="cpu", clock=lambda: next(ticks)
    )
    assert figures["images_per_second"] == {"1": pytest.approx(1 / 5.0)}


@pytest.mark.parametrize("name", sorted(random_scorers.MAKERS))
def test_random_scorers_are_marked_and_score(name: str):
    scorer = bench_rewards.load(name, side=48, real_size=False, device="cpu")
    ticks = itertools.count(step=1.0)
    figures = bench_rewards.measure(scorer, batches=[2], rounds=1, limit=60.0, device="cpu", clock=lambda: next(ticks))
    assert figures["random_weights"] is True
    assert figures["images_per_second"] == {"2": 2.0}


def test_published_sizes_are_known_for_every_architecture():
    assert set(random_scorers.REAL) == set(random_scorers.MAKERS)
    assert random_scorers.REAL["clip-vit-h-14"].vision == random_scorers.Tower(1280, 32, 16)
