"""Every reward has a page that says what it computes, what it costs and how it is hacked; facts come from its card."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import pytest

from difalign.build.cards import RewardCard, list_rewards
from tests.house.repository import ROOT, relative

PAGES = sorted((ROOT / "docs" / "rewards").glob("*.md"))
DIRECTIVE = re.compile(r"^```\{reward-card\} (\S+)$", flags=re.MULTILINE)
HEADINGS = ("## Formula", "## Scale", "## Cost", "## How it is hacked")
REWARD_PAGES = [page for page in PAGES if DIRECTIVE.search(page.read_text())]


def load_directive() -> ModuleType:
    """The extension, which lies beside the pages."""
    spec = importlib.util.spec_from_file_location("reward_card", ROOT / "docs" / "_ext" / "reward_card.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_card_stands_on_one_page():
    quoted = [name for page in PAGES for name in DIRECTIVE.findall(page.read_text())]
    assert sorted(quoted) == sorted(found.card.name for found in list_rewards())


@pytest.mark.parametrize("page", REWARD_PAGES, ids=relative)
def test_a_page_answers_every_question(page: Path):
    text = page.read_text()
    assert all(heading in text for heading in HEADINGS)
    index = (ROOT / "docs" / "rewards" / "index.md").read_text()
    assert f"({page.name})" in index
    assert f"\n{page.stem}\n" in index


def test_the_table_is_the_cards():
    card = RewardCard.model_validate(
        {
            "name": "x",
            "summary": "what it is",
            "target": "a.b:C",
            "licence": "MIT",
            "hub_id": "me/mine",
            "file": "w.pt",
            "sha256": "0" * 64,
            "differentiable": True,
            "needs": ["clauses"],
            "requires": ["json"],
            "bounds": [0, None],
            "options": {"scale": "cosine"},
            "scales": {"paper": {"mean": 18.0, "std": 8.0}},
            "statistics": {"mean": 0.2786, "within_prompt_std": 0.0073, "source": "FLUX"},
        }
    )
    told = " ".join(f"{key}: {value}" for key, value in load_directive().rows(card, {"x": {"1": 12.5, "8": 30.0}}))
    for fact in ("MIT", "me/mine", "w.pt", "0" * 64, "0 to …", "clauses", "0.2786", "0.0073", "FLUX", "− 18) / 8"):
        assert fact in told
    assert "12.5 at batch 1, 30 at batch 8" in told
    assert "](" not in told  # a link out of the pages is no link


def test_speeds_are_those_of_real_weights_in_the_last_line(tmp_path: Path):
    lines = [
        {"x": {"images_per_second": {"1": 1.0}}, "y": {"images_per_second": {"1": 5.0}, "random_weights": True}},
        {"x": {"images_per_second": {"1": 2.0}}},
    ]
    file = tmp_path / "rewards.jsonl"
    file.write_text("".join(json.dumps({"results": {"scorers": line}}) + "\n" for line in lines))
    assert load_directive().speeds(file) == {"x": {"1": 2.0}}
