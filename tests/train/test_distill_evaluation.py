"""Judges are asked once, and their figures are those of the ranking measures, prompt by prompt."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from difalign.core.types import Metadata, RewardOutput
from difalign.objective.ranking import agreement
from difalign.train.distill_evaluation import Judge, as_json, compare, score_levels
from tests.train.distil_toys import Solo

SIGMAS = (0.3, 0.6)
# Two prompts of four; the second level swaps the best and the worst of the first prompt.
TARGET = torch.tensor([1.0, 2, 3, 4, 4, 3, 2, 1])
SEEN = {0.3: TARGET.clone(), 0.6: torch.tensor([4.0, 2, 3, 1, 4, 3, 2, 1])}


class Reader:
    """Scores what it is shown by its only number."""

    name, differentiable = "reader", False

    def __init__(self) -> None:
        self.asked: list[float | None] = []

    def score(
        self, media: Tensor, prompts: Sequence[str], *, metadata: Metadata | None = None, sigma: float | None = None
    ) -> RewardOutput:
        assert media.shape[0] == len(prompts)
        self.asked.append(sigma)
        return RewardOutput(media.flatten())


PROMPTS = tuple("aaaabbbb")


def shown(sigma: float, rows: Tensor) -> Tensor:
    return SEEN[sigma][rows].reshape(-1, 1, 1, 1)


def judge(reader: Reader, *, identity: str = "one") -> Judge:
    return Judge("the reader, guided", lambda: reader, shown, SIGMAS, identity)


def ask(folder: Path, *judges: Judge) -> list[str]:
    said: list[str] = []
    score_levels(
        judges,
        folder,
        prompts=PROMPTS,
        micro_batch=3,
        team=Solo(),
        progress=lambda name, done, total: said.append(f"{name} {done}/{total}"),
    )
    return said


def test_figures_are_of_single_prompts(tmp_path: Path):
    one = judge(Reader())
    said = ask(tmp_path, one)
    assert said[:3] == [f"the reader, guided at sigma 0.3000 {done}/8" for done in (3, 6, 8)]
    clean, noisy = compare([one], tmp_path, prompts=PROMPTS, target=TARGET, keep=0.25)
    assert (clean.sigma, noisy.sigma, clean.prompts) == (0.3, 0.6, 2)
    assert {name: clean.measures[name].mean for name in ("spearman", "kendall", "squared_error", "top")} == {
        "spearman": pytest.approx(1.0),
        "kendall": pytest.approx(1.0),
        "squared_error": 0.0,
        "top": 1.0,
    }
    # One of four is kept: of the first prompt the worst, of the second the best.
    assert noisy.measures["top"].mean == 0.5
    assert noisy.measures["top"].standard_error == pytest.approx(0.5)
    whole = agreement(SEEN[0.6], TARGET, torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]))
    assert noisy.measures["spearman"].mean == pytest.approx(whole.spearman.mean)
    assert noisy.measures["shortfall"].mean == pytest.approx(whole.shortfall.mean)
    assert compare([one], tmp_path, prompts=PROMPTS, target=TARGET, keep=1.0)[1].measures["top"].mean == 1.0


def test_nobody_is_asked_twice_unless_it_has_changed(tmp_path: Path):
    reader = Reader()
    ask(tmp_path, judge(reader))
    assert reader.asked == [0.3] * 3 + [0.6] * 3
    ask(tmp_path, judge(reader))
    assert len(reader.asked) == 6
    next(tmp_path.glob("*_0.6.json")).write_text("{")
    ask(tmp_path, judge(reader))
    assert reader.asked[6:] == [0.6] * 3
    ask(tmp_path, judge(reader, identity="two"))
    assert len(reader.asked) == 15


def test_a_score_that_is_no_number_is_an_error(tmp_path: Path):
    with pytest.raises(ValueError, match=r"the reader, guided at sigma 0\.3: the scores of rows \[0, 1, 2"):
        ask(tmp_path, replace(judge(Reader()), estimates=lambda sigma, rows: shown(sigma, rows) * math.nan))


def test_the_document_is_plain_json(tmp_path: Path):
    one = judge(Reader())
    ask(tmp_path, one)
    found = json.loads(
        as_json(compare([one], tmp_path, prompts=PROMPTS, target=TARGET, keep=0.5), {"teacher": "reader"})
    )
    assert (found["format"], found["teacher"], len(found["rows"])) == (1, "reader", 2)
    assert found["rows"][0]["measures"]["spearman"] == {"mean": pytest.approx(1.0), "standard_error": pytest.approx(0)}
