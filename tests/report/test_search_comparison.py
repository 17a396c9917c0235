from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from difalign.report.search_comparison import as_json, compare_searches, lines, write_comparison
from difalign.report.search_records import read_results
from difalign.report.statistics import bootstrap_interval
from tests.report.browser import probed
from tests.report.fake_search import PROMPTS, fake_search

MORE = tuple(f"prompt {i}" for i in range(20))


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    """Best-of-N, and a pruned search of the same candidates whose reward is a little higher."""
    return [
        fake_search(tmp_path / "bon", prompts=MORE, keeps=()),
        fake_search(tmp_path / "pruned", prompts=MORE, keeps=(2, 1), gain=0.02),
    ]


def test_winners_are_paired_by_prompt(two: list[Path]) -> None:
    found = compare_searches(two, seed=3)
    scores = [np.array([line.winner.score for line in read_results(folder)]) for folder in two]
    difference = scores[1] - scores[0]
    (one,) = found.others
    assert (found.base, one.name, found.prompts) == ("bon", "pruned", 20)
    gain = one.gains["score"].gain
    assert gain.gain == pytest.approx(difference.mean())
    assert gain.ci95 == pytest.approx(bootstrap_interval(difference, np.random.default_rng(3)))
    assert (one.wins, one.ties, one.losses) == tuple(
        int(n) for n in ((difference > 0).sum(), (difference == 0).sum(), (difference < 0).sum())
    )
    assert one.losses > 0
    assert one.cost_ratio["nfe"] == pytest.approx(34 / 80)
    assert set(one.gains) == {"score", "count"}
    assert [curve.x.size > 1 for curve in found.curves] == [True, False]


def test_a_search_against_itself_is_all_ties(tmp_path: Path) -> None:
    folder = fake_search(tmp_path / "run", prompts=MORE)
    (one,) = compare_searches([folder, folder]).others
    assert (one.wins, one.ties, one.losses) == (0, 20, 0)
    assert one.gains["score"].gain.ci95 == (0.0, 0.0)
    assert one.cost_ratio == {"nfe": 1.0, "tflops": 1.0, "seconds": 1.0}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed": 8}, r"seed differs: 7 in bon, 8 in other"),
        ({"reward": "clip"}, r'reward differs: "verifier" in bon, "clip" in other'),
        ({"prompts": MORE[:19]}, r"prompts differ: bon has 20 and other has 19, and 1 stand.* 'prompt 19'"),
    ],
)
def test_searches_of_other_things_are_refused(two: list[Path], settings: dict[str, object], message: str) -> None:
    other = fake_search(two[0].parent / "other", **{"prompts": MORE, **settings})
    with pytest.raises(ValueError, match=message):
        compare_searches([two[0], other])
    with pytest.raises(ValueError, match="two or more"):
        compare_searches(two[:1])


def test_prompts_without_a_winner_are_left_out_and_named(tmp_path: Path) -> None:
    whole, partial = fake_search(tmp_path / "whole"), fake_search(tmp_path / "partial", failed=PROMPTS[1:2])
    found = compare_searches([whole, partial])
    assert (found.prompts, found.left_out) == (3, PROMPTS[1:2])
    assert found.others[0].ties == 3


def test_the_same_prompt_twice_is_two_pairs(tmp_path: Path) -> None:
    folders = [fake_search(tmp_path / name, prompts=("a circle", "a circle")) for name in ("first", "second")]
    assert compare_searches(folders).prompts == 2


def test_three_searches_in_words_in_json_and_on_a_page(chromium: str, two: list[Path]) -> None:
    found = compare_searches([*two, fake_search(two[0].parent / "third", prompts=MORE, keeps=(2,), gain=-0.4)])
    written = lines(found)
    assert [(line.run, line.score) for line in written] == [
        (run, score) for run in ("pruned", "third") for score in ("score", "count")
    ]
    assert written[2].verdict == "below 0"
    assert written[0].cost.startswith("0.42× nfe")
    data = as_json(found)
    assert data["runs"][1]["losses"] == 20
    assert data["runs"][0]["scores"]["score"]["ci95"][0] <= data["runs"][0]["scores"]["score"]["gain"]
    page = write_comparison(two[0].parent / "compare.html", found)
    script = """const count = (selector) => document.querySelectorAll(selector).length;
    return {rows: count('tbody tr'), curves: count('.curve'),
      overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth};"""
    seen = probed(chromium, page, script, size="500,900")
    assert (seen["rows"], seen["curves"]) == (4, 3)
    assert seen["overflow"] <= 0
