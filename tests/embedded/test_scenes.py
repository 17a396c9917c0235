"""The grammar: captions and scenes say the same, held-out compositions stay out, layouts make captions true."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from difalign.embedded.scenes import (
    CELL,
    JITTER,
    KINDS,
    RADIUS,
    RELATIONS,
    SIZE,
    SceneSpec,
    Thing,
    all_specs,
    draw_layout,
    is_held_out,
    parse_caption,
)

PROMPTS = Path(__file__).parents[2] / "samples" / "prompts"


def read(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (PROMPTS / name).read_text().splitlines()]


@pytest.mark.parametrize("kind", KINDS)
def test_every_caption_reads_back_as_its_scene(kind) -> None:
    specs = all_specs(kind)
    assert len({spec.caption for spec in specs}) == len(specs)
    assert all(parse_caption(spec.caption) == spec for spec in specs)


def test_number_of_scenes() -> None:
    # 24 things; 24 * 23 ordered pairs.
    counts = {kind: len(all_specs(kind)) for kind in KINDS}
    assert counts == {"single": 24, "place": 96, "count": 72, "two": 552, "relation": 2208, "count_pair": 1104}


@pytest.mark.parametrize(
    "caption",
    [
        "",
        "a dog",
        "a red circle and a red circle",
        "two red circle",
        "a red circles",
        "a red circle near a blue square",
        "two red circles left of a blue square",
        "a red circle and two blue squares",
        "four red circles and a blue square",
        "two red circles at the left",
        "a red circle a blue square",
    ],
)
def test_captions_outside_the_grammar_are_refused_with_examples(caption) -> None:
    with pytest.raises(ValueError, match=r"not in the scene grammar.*a red circle left of a blue square"):
        parse_caption(caption)


def test_case_spaces_and_a_full_stop_do_not_matter() -> None:
    assert parse_caption("  A red  circle. ") == SceneSpec("single", ((1, Thing("red", "circle")),))


@pytest.mark.parametrize("kind", KINDS)
def test_held_out_share(kind) -> None:
    specs = all_specs(kind)
    share = sum(map(is_held_out, specs)) / len(specs)
    assert 0.1 < share < 0.35


def test_a_held_out_pair_is_held_out_in_every_kind_and_order() -> None:
    by_pair: dict[frozenset[Thing], set[bool]] = {}
    for kind in ("two", "relation", "count_pair"):
        for spec in all_specs(kind):
            by_pair.setdefault(frozenset(thing for _, thing in spec.groups), set()).add(is_held_out(spec))
    assert len(by_pair) == 24 * 23 // 2
    assert all(len(answers) == 1 for answers in by_pair.values())


def test_prompt_lists_are_disjoint_and_respect_the_hold_out() -> None:
    train, heldout = read("tiny_train.jsonl"), read("tiny_heldout.jsonl")
    assert len(heldout) >= 300
    assert {row["kind"] for row in heldout} == {row["kind"] for row in train} == set(KINDS)
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in heldout}
    for rows, expected in ((train, False), (heldout, True)):
        for row in rows:
            spec = parse_caption(row["prompt"])
            assert spec.kind == row["kind"]
            assert is_held_out(spec) is expected


@pytest.mark.parametrize("kind", KINDS)
def test_layouts_lie_inside_and_never_touch(kind) -> None:
    rng = np.random.default_rng(3)
    reach = RADIUS[1]
    for spec in all_specs(kind)[::7]:
        objects = draw_layout(spec, rng)
        assert len(objects) == spec.total
        for placed in objects:
            assert reach <= placed.x <= SIZE - reach
            assert reach <= placed.y <= SIZE - reach
        for i, a in enumerate(objects):
            for b in objects[:i]:
                assert max(abs(a.x - b.x), abs(a.y - b.y)) >= CELL - 2 * JITTER


@pytest.mark.parametrize("relation", RELATIONS)
def test_layouts_make_the_relation_true(relation) -> None:
    rng = np.random.default_rng(5)
    sx, sy = RELATIONS[relation]
    for spec in [spec for spec in all_specs("relation") if spec.relation == relation][::11]:
        a, b = draw_layout(spec, rng)
        along, across = (a.x - b.x) * sx + (a.y - b.y) * sy, abs((a.x - b.x) * sy) + abs((a.y - b.y) * sx)
        assert along > 0
        assert along >= across - 4 * JITTER
