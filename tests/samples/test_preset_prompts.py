"""The prompt lists of the large presets: what the recipe writes is shipped, and clauses say what prompts say."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from difalign.core.prompts import Prompt, read_prompts
from tests.samples.recipe_modules import ROOT, recipe_module

recipe = recipe_module("write_preset_prompts")
SHIPPED = ROOT / "samples" / "prompts"
FILES = recipe.files()


def read(name: str) -> tuple[Prompt, ...]:
    return read_prompts(SHIPPED / name)


def wording(prompt: Prompt) -> str:
    """The prompt again, from its clauses alone."""
    clauses: Any = prompt.metadata["include"]
    said = []
    for clause in clauses:
        name = f"{clause['color']} {clause['class']}" if "color" in clause else clause["class"]
        number = recipe.NUMBERS.get(clause["count"])
        said.append(recipe.article(name) if number is None else f"{number} {recipe.plural(name)}")
    if "position" in clauses[-1]:
        assert clauses[-1]["position"][1] == 0
        return f"a photo of {said[1]} {clauses[-1]['position'][0]} {said[0]}"
    return f"a photo of {' and '.join(said)}"


@pytest.mark.parametrize("name", FILES)
def test_shipped_file_is_what_the_recipe_writes(name: str):
    assert (SHIPPED / name).read_text() == FILES[name]


def test_objects_are_mixed_as_flow_grpo_mixes_them():
    counts = Counter(prompt.kind for prompt in read("objects_train.jsonl"))
    mix = {kind: counts[kind] / 24 for kind in recipe.KINDS}
    assert mix == {"position": 7, "counting": 5, "color_attr": 3, "colors": 1, "two_object": 1, "single_object": 0}
    assert set(Counter(prompt.kind for prompt in read("objects_heldout.jsonl")).values()) == {30}


def test_clauses_say_what_prompts_say():
    for prompt in (*read("objects_train.jsonl"), *read("objects_heldout.jsonl")):
        assert wording(prompt) == prompt.text
        included: Any = prompt.metadata["include"]
        excluded: Any = prompt.metadata.get("exclude", [])
        for clause in excluded:  # GenEval: not one more than asked for
            assert prompt.kind == "counting"
            assert clause["count"] == included[0]["count"] + 1


@pytest.mark.parametrize(
    ("noun", "many"), [("bus", "buses"), ("bench", "benches"), ("knife", "knives"), ("cat", "cats")]
)
def test_plurals(noun: str, many: str):
    assert recipe.plural(noun) == many
    assert recipe.article(noun) == f"a {noun}"
    assert recipe.article("orange cat") == "an orange cat"


@pytest.mark.parametrize(("kind", "sizes"), [("objects", (408, 180)), ("pictures", (240, 60))])
def test_held_out_prompts_are_never_trained(kind: str, sizes: tuple[int, int]):
    suffix = "jsonl" if kind == "objects" else "txt"
    train, heldout = ({p.text for p in read(f"{kind}_{part}.{suffix}")} for part in ("train", "heldout"))
    assert (len(train), len(heldout)) == sizes
    assert not train & heldout
