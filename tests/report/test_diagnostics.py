"""Diagnostics on disk, and what they say in a sentence."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from difalign.report.diagnostics import diagnostics_from_json, diagnostics_to_json
from difalign.report.images import read_tiles
from difalign.report.log import RunLog
from difalign.report.run_folder import read_run
from difalign.report.steps import signal_sentence, step_charts
from tests.folders import file_contents
from tests.report.fake_diagnostics import branched, leaf_pictures, seen_at, signal


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    seen = seen_at(7)
    pictures = leaf_pictures(seen)
    path = RunLog(tmp_path).write_diagnostics(seen, pictures)
    assert path == tmp_path / "diagnostics" / "000007.json"
    (stored,) = read_run(tmp_path).diagnostics
    assert stored.diagnostics == seen
    assert stored.pictures == path.with_suffix(".png")
    tiles = read_tiles(path.with_suffix(".png"))
    for prompt, batch in zip(seen.prompts, pictures, strict=True):
        for picture, pixels in enumerate(batch):
            mine = np.asarray(tiles[prompt.index, picture]).transpose(2, 0, 1) / 255.0
            assert np.abs(mine - pixels).max() <= 0.5 / 255 + 1e-6


def test_norms_that_are_not_finite_stay_what_they_are() -> None:
    seen = replace(seen_at(0), steps=(replace(signal(0), gradient_norm=math.inf, clip_fraction=None),), prompts=())
    text = json.dumps(diagnostics_to_json(seen))
    assert diagnostics_from_json(json.loads(text)) == seen


def test_samples_that_are_no_pictures_leave_no_picture(tmp_path: Path) -> None:
    RunLog(tmp_path).write_diagnostics(seen_at(0), [np.zeros((0, 3, 1, 1))] * 2)
    assert list(file_contents(tmp_path)) == ["diagnostics/000000.json"]
    assert read_run(tmp_path).diagnostics[0].pictures is None


def test_a_broken_file_is_named_and_left_out(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    log.write_diagnostics(seen_at(4))
    (tmp_path / "diagnostics" / "000000.json").write_text('{"rollout": 0}')
    run = read_run(tmp_path)
    assert [stored.diagnostics.rollout for stored in run.diagnostics] == [4]
    assert "diagnostics/000000.json could not be read: not diagnostics" in run.problems[0]


def test_charts_show_the_first_and_the_last_rollout_by_sigma() -> None:
    charts = step_charts([seen_at(0), seen_at(10), seen_at(20)])
    titles = ["Spread of the reward", "Gradient norm", "Clip fraction", "Spread of the ratio", "Noise and weight"]
    assert [chart.title for chart in charts] == titles
    spread, gradient, clipped = charts[:3]
    assert {curve.name for curve in spread.curves} == {
        f"Within {what}, rollout {rollout}" for what in ("groups", "start noises") for rollout in (0, 20)
    }
    assert [curve.name for curve in gradient.curves][::2] == ["Unweighted, rollout 0", "Weighted, rollout 0"]
    assert [curve.name for curve in clipped.curves] == ["Rollout 0", "Rollout 20"]
    assert clipped.positions == ("σ 1", "σ 0.8", "σ 0.6")
    assert [tick.label for tick in clipped.x_ticks] == ["σ 1.00", "0.80", "0.60"]
    across = [x for x, _ in clipped.curves[0].points]
    assert across == sorted(across)


def test_charts_leave_out_what_was_not_there() -> None:
    plain = [
        replace(step, weight=1.0, seed_reward_std=None, clip_fraction=None, ratio_std=None) for step in seen_at(0).steps
    ]
    charts = step_charts([replace(seen_at(0), steps=tuple(plain))])
    assert [chart.title for chart in charts] == ["Spread of the reward", "Gradient norm", "Noise and weight"]
    assert [curve.name for curve in charts[1].curves] == ["value"]  # weighted and unweighted are one
    assert step_charts([]) == []


def test_sentence_compares_the_first_and_the_last_step() -> None:
    assert signal_sentence(seen_at(0)) == (
        "Rewards among the samples of one start noise spread by 0.4 at σ 1.00, the first trained step, and by 0.1 at "
        "σ 0.60, the last. The gradient of the last is 4 times that of the first, 2 times with the step weights."
    )
    steps = tuple(replace(step, weight=1.0, seed_reward_std=None) for step in seen_at(0).steps)
    assert signal_sentence(replace(seen_at(0), steps=steps)).startswith("Rewards within groups spread by 0.5 at")
    assert signal_sentence(replace(seen_at(0), steps=steps)).endswith("is 4 times that of the first.")
    assert signal_sentence(replace(seen_at(0), steps=steps[:1])) == ""


@pytest.mark.parametrize("field", ["sigma", "steps", "prompts", "rollout"])
def test_a_field_that_is_missing_is_an_error(field: str) -> None:
    data = diagnostics_to_json(seen_at(0))
    del data[field]
    with pytest.raises(ValueError, match="not diagnostics"):
        diagnostics_from_json(data)


def test_the_fake_tree_is_a_tree() -> None:
    tree = branched((0, 1), children=2, steps=3)
    assert len(tree.leaves) == 4
    assert {leaf.node for leaf in tree.leaves} <= {move.child for move in tree.moves}
