"""The prompt templates of B2-DiffuRL: their rule, their sizes, and that the shipped files are what the rule writes."""

from __future__ import annotations

import pytest

from difalign.core.prompts import read_prompts
from tests.samples.recipe_modules import ROOT, recipe_module

recipe = recipe_module("write_template_prompts")
LISTS = recipe.prompt_lists()
SHIPPED = ROOT / "samples" / "prompts"


def texts(name: str) -> list[str]:
    return [prompt.text for prompt in read_prompts(SHIPPED / f"{name}.txt")]


def test_template_1_is_the_published_rule():
    train, heldout = texts("b2_template1_train"), texts("b2_template1_heldout")
    assert (len(train), len(heldout), len({*train, *heldout})) == (45, 90, 135)
    # Animals 1-15, 16-30 and 31-45 in DDPO's order, one activity each.
    assert (train[0], train[14], train[15]) == (
        "a cat washing dishes",
        "a bear washing dishes",
        "a raccoon riding a bike",
    )
    assert (train[20], train[29], train[44]) == (
        "a ant riding a bike",
        "a snake riding a bike",
        "a kangaroo playing chess",
    )
    assert [prompt.split()[1] for prompt in train] == list(recipe.read_animals())
    done = {(prompt.split()[1], prompt.split(maxsplit=2)[2]) for prompt in (*train, *heldout)}
    assert done == {(animal, activity) for animal in recipe.read_animals() for activity in recipe.ACTIVITIES}


def test_template_2_has_the_published_structure():
    train, heldout = texts("b2_template2_train"), texts("b2_template2_heldout")
    assert (len(train), len(heldout)) == (40, 40)
    trained = [prompt.split()[1] for prompt in train]
    assert sorted(trained) == sorted([*recipe.FRUITS] * 2)
    again = [prompt for prompt in heldout if prompt.split()[1] in trained]
    assert len({prompt.split()[1] for prompt in again}) == 20
    assert not {prompt.split()[0] for prompt in again} & {prompt.split()[0] for prompt in train}
    assert len({prompt.split()[1] for prompt in heldout}) == 40


def test_template_3_has_the_published_structure():
    train, heldout = texts("b2_template3_train"), texts("b2_template3_heldout")
    assert (len(train), len(heldout), len({*train, *heldout})) == (40, 30, 70)
    for words in (recipe.THINGS, recipe.PREDICATES, recipe.PLACES):
        assert all(any(word in prompt for prompt in train) for word in words)


@pytest.mark.parametrize("name", LISTS)
def test_shipped_file_is_what_the_recipe_writes(name: str):
    assert (SHIPPED / f"{name}.txt").read_text() == LISTS[name].text()


@pytest.mark.parametrize("number", [2, 3])
def test_files_in_words_of_our_own_say_so(number: int):
    for part in ("train", "heldout"):
        assert "the words are our own" in (SHIPPED / f"b2_template{number}_{part}.txt").read_text()
