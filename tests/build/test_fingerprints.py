"""A digest of prompts changes with whatever a reward may read of them."""

from __future__ import annotations

import pytest

from difalign.build.cards import load_pipeline_card
from difalign.build.fingerprints import fingerprints
from difalign.core.prompts import Prompt

PROMPT = Prompt("a red circle", "single", {"count": 1, "colour": "red"})


def mark(prompt: Prompt) -> str:
    return fingerprints(load_pipeline_card("tiny-sd3"), {}, (prompt,), ())["prompts.train"]


@pytest.mark.parametrize(
    "changed",
    [
        Prompt("a red square", "single", PROMPT.metadata),
        Prompt("a red circle", "count", PROMPT.metadata),
        Prompt("a red circle", "single", {"count": 2, "colour": "red"}),
        Prompt("a red circle", "single"),
    ],
    ids=["text", "kind", "metadata", "no metadata"],
)
def test_every_part_of_a_prompt_counts(changed: Prompt):
    assert mark(changed) != mark(PROMPT)


def test_the_order_of_metadata_does_not():
    assert mark(Prompt("a red circle", "single", {"colour": "red", "count": 1})) == mark(PROMPT)
