"""Which captions are true of which layouts, by the verifier; and captions that differ in one attribute."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from difalign.embedded.parse import Found, ParsedImage
from difalign.embedded.scenes import KINDS, SIZE, Placed, SceneSpec, all_specs, draw_layout, parse_caption
from difalign.embedded.verifier import judge
from tests.samples.recipe_modules import recipe_module

claims = recipe_module("scene_claims")


def seen(layout: tuple[Placed, ...]) -> ParsedImage:
    return ParsedImage((SIZE, SIZE), tuple(Found(o.thing, o.x, o.y, o.radius, 1.0) for o in layout), 0, 0.0)


def captions_of(spec: SceneSpec) -> list[str]:
    return [other.caption for others in claims.changed_captions(spec).values() for other in others]


@pytest.fixture(scope="module")
def drawn() -> list[tuple[SceneSpec, tuple[Placed, ...]]]:
    rng = np.random.default_rng(0)
    pools = [all_specs(kind) for kind in KINDS]
    specs = [pool[rng.integers(len(pool))] for pool in pools for _ in range(12)]
    return [(spec, draw_layout(spec, rng)) for spec in specs]


def test_truth_is_the_verifiers(drawn):
    captions = [spec for spec, _ in drawn]
    captions += [
        other for spec in list(captions) for others in claims.changed_captions(spec).values() for other in others
    ]
    layouts = [layout for _, layout in drawn]
    expected = [[judge(seen(layout), spec).strict == 1.0 for spec in captions] for layout in layouts]
    found = claims.is_true(captions, layouts)
    assert np.array_equal(found, np.asarray(expected))
    assert found.diagonal().all()
    assert found.sum() > len(layouts)  # more than its own caption is true of a layout


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("a red circle above a blue square", "a blue square below a red circle"),
        ("a red circle left of a blue square", "a blue square right of a red circle"),
        ("a red circle and a blue square", "a blue square and a red circle"),
    ],
)
def test_two_ways_to_say_the_same_are_both_true(one: str, other: str):
    rng = np.random.default_rng(1)
    specs = [parse_caption(one), parse_caption(other)]
    layouts = [draw_layout(spec, rng) for spec in specs for _ in range(20)]
    assert claims.is_true(specs, layouts).all()


def test_less_said_of_the_same_things_is_true_and_more_is_not_always():
    rng = np.random.default_rng(2)
    said = [parse_caption(text) for text in ("a red circle", "a red circle at the left", "two red circles")]
    layouts = [draw_layout(said[1], rng) for _ in range(20)]
    assert claims.is_true(said, layouts).all(axis=0).tolist() == [True, True, False]


def test_one_attribute_differs(drawn):
    for spec, _ in drawn:
        for change, others in claims.changed_captions(spec).items():
            for other in others:
                assert parse_caption(other.caption) == other
                assert Counter(differences(spec, other)) == EXPECTED[change](spec, other), (spec.caption, other.caption)


def differences(spec: SceneSpec, other: SceneSpec) -> list[str]:
    """What differs, group by group."""
    found = [name for name in ("place", "relation") if getattr(spec, name) != getattr(other, name)]
    for (count, thing), (new_count, new) in zip(spec.groups, other.groups, strict=True):
        found += ["count"] * (count != new_count)
        found += [name for name in ("color", "shape") if getattr(thing, name) != getattr(new, name)]
    return found


def exchanged(spec: SceneSpec, other: SceneSpec) -> Counter[str]:
    """An exchange keeps what is there and moves it."""
    for name in ("color", "shape"):
        assert Counter(getattr(thing, name) for _, thing in spec.groups) == Counter(
            getattr(thing, name) for _, thing in other.groups
        )
    assert spec.groups != other.groups
    return Counter(differences(spec, other))


def related(spec: SceneSpec, other: SceneSpec) -> Counter[str]:
    return Counter(["relation"]) if spec.groups == other.groups else exchanged(spec, other)


EXPECTED = {
    "color": lambda spec, other: Counter(["color"]),
    "shape": lambda spec, other: Counter(["shape"]),
    "count": lambda spec, other: Counter(["count"]),
    "place": lambda spec, other: Counter(["place"]),
    "relation": related,
    "binding": exchanged,
}


@pytest.mark.parametrize(
    ("caption", "change", "expected"),
    [
        ("a red circle", "count", ["two red circles", "three red circles", "four red circles"]),
        ("a red circle at the left", "count", []),
        (
            "two red circles and a blue square",
            "count",
            ["a red circle and a blue square", "three red circles and a blue square"],
        ),
        ("two red circles and a red square", "binding", ["two red squares and a red circle"]),
        ("a red circle and a red square", "binding", []),
        ("a red circle and a blue square", "binding", ["a blue circle and a red square"]),
        (
            "a red circle above a blue square",
            "relation",
            [
                "a red circle left of a blue square",
                "a red circle right of a blue square",
                "a red circle below a blue square",
                "a blue square above a red circle",
            ],
        ),
    ],
)
def test_changes_by_example(caption: str, change: str, expected: list[str]):
    changed = claims.changed_captions(parse_caption(caption))[change]
    assert sorted(spec.caption for spec in changed) == sorted(expected)
