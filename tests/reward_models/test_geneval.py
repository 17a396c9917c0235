"""GenEval's rules on boxes that are made up: which objects count, where they lie, what a picture is worth."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from difalign.reward_models.geneval import (
    Box,
    FoundObject,
    KeepingRule,
    Verdict,
    judge,
    keep_objects,
    overlap,
    relations,
)
from difalign.reward_models.geneval_clauses import Clause, Task

HERE: Box = (0, 0, 10, 10)
RULE = KeepingRule()


def thing(label: str, x: float = 0, y: float = 0, *, score: float = 0.95, size: float = 10) -> FoundObject:
    return FoundObject(label, (x, y, x + size, y + size), score)


def all_red(label: str, found: Sequence[FoundObject]) -> list[str]:
    return ["red"] * len(found)


def no_colours(label: str, found: Sequence[FoundObject]) -> list[str]:
    raise AssertionError(f"nobody should ask for the colour of {label}")


def verdict(task: Task, *found: FoundObject, colours=no_colours, compat: str = "none") -> Verdict:
    return judge(task, keep_objects(found, task.tag, rule=RULE), colours, compat=compat)


@pytest.mark.parametrize(("tag", "kept"), [("counting", [0.95]), ("two_object", [0.95, 0.9, 0.31])])
def test_only_sure_objects_count_and_must_be_surer_to_be_counted(tag: str, kept: list[float]):
    found = [thing("dog", score=score) for score in (0.3, 0.9, 0.95, 0.31)]
    assert [one.score for one in keep_objects(found, tag, rule=RULE)["dog"]] == kept


def test_at_most_sixteen_of_a_class_the_surest():
    found = [thing("dog", score=0.5 + i / 100) for i in range(20)] + [thing("cat")]
    kept = keep_objects(found, "two_object", rule=RULE)
    assert [one.score for one in kept["dog"]] == [pytest.approx(0.5 + i / 100) for i in range(19, 3, -1)]
    assert len(kept["cat"]) == 1
    assert len(keep_objects(found, "two_object", rule=KeepingRule(max_objects=3))["dog"]) == 3


def test_overlapping_objects_of_a_class_go_only_where_asked():
    found = [thing("dog", score=0.9), thing("dog", 1, score=0.8), thing("cat", 1, score=0.7), thing("dog", 40)]
    assert len(keep_objects(found, "", rule=RULE)["dog"]) == 3
    kept = keep_objects(found, "", rule=KeepingRule(max_overlap=0.5))
    assert [one.score for one in kept["dog"]] == [0.95, 0.9]
    assert len(kept["cat"]) == 1


def test_what_lies_behind_the_sixteenth_does_not_move_up():
    """GenEval's code counts to sixteen before it looks at overlaps."""
    found = [thing("dog", score=0.9), thing("dog", score=0.8), thing("dog", 90, score=0.7)]
    assert len(keep_objects(found, "", rule=KeepingRule(max_objects=2, max_overlap=0.5))["dog"]) == 1


def test_overlap_counts_pixels():
    assert overlap(HERE, HERE) == 1.0
    assert overlap(HERE, (20, 20, 30, 30)) == 0.0
    assert overlap((0, 0, 9, 9), (5, 0, 14, 9)) == pytest.approx(
        50 / 150
    )  # ten by ten pixels each, five columns shared


@pytest.mark.parametrize(
    ("other", "seen"),
    [
        ((-40, 0, -30, 10), {"left of"}),
        ((40, 0, 50, 10), {"right of"}),
        ((0, -40, 10, -30), {"above"}),
        ((0, 40, 10, 50), {"below"}),
        ((40, 40, 50, 50), {"right of", "below"}),
        ((-40, -40, -30, -30), {"left of", "above"}),
        ((1, 1, 11, 11), set()),  # nearly the same place
        (HERE, set()),
        ((2, 0, 12, 10), set()),  # exactly a tenth of both widths
        ((4, 0, 14, 10), set()),  # two of four pixels are left: not more than half
        ((5, 0, 15, 10), {"right of"}),  # three of five
    ],
)
def test_relations_are_those_of_the_centres(other: Box, seen: set[str]):
    assert relations(other, HERE) == seen
    opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    assert relations(HERE, other) == {opposite[name] for name in seen}


def test_bigger_objects_must_lie_further_apart():
    assert relations((5, 0, 15, 10), HERE) == {"right of"}
    assert relations((5, 0, 15, 10), HERE, position_threshold=0.2) == set()


TWO_DOGS = Task("counting", (Clause("dog", 2),), (Clause("dog", 3),))


@pytest.mark.parametrize(
    ("count", "partial", "strict", "official"),
    [(0, 0.0, 0, 0), (1, 0.5, 0, 0), (2, 1.0, 1, 1), (3, 0.5, 0, 0), (4, 0.0, 0, 0), (6, -1.0, 0, 0)],
)
def test_counting(count: int, partial: float, strict: int, official: int):
    found = verdict(TWO_DOGS, *[thing("dog", 20 * i) for i in range(count)])
    assert (found.partial, found.strict, found.official) == (partial, strict, official)
    assert bool(found.reasons) == (strict == 0)


def test_official_overlooks_what_is_too_many_and_strict_does_not():
    found = verdict(Task("single_object", (Clause("dog", 1),)), thing("dog"), thing("dog", 20))
    assert (found.partial, found.strict, found.official) == (0.0, 0.0, 1.0)
    assert found.reasons == ("1 dog wanted, 2 found",)


def test_clauses_are_averaged():
    both = Task("two_object", (Clause("dog", 1), Clause("cat", 1)))
    assert verdict(both, thing("dog"), thing("cat")).partial == 1.0
    assert verdict(both, thing("dog"), thing("bear")).partial == 0.5
    assert verdict(both).partial == 0.0


RED_DOG = Task("colors", (Clause("dog", 1, "red"),))
BLUE_DOG = Task("colors", (Clause("dog", 1, "blue"),))


def test_colours_are_asked_for_where_the_count_is_right():
    assert verdict(RED_DOG, thing("dog"), colours=all_red) == Verdict(1.0, 1.0, 1.0)
    wrong = verdict(BLUE_DOG, thing("dog"), colours=all_red)
    assert (wrong.partial, wrong.strict, wrong.official) == (0.5, 0.0, 0.0)
    missing = verdict(RED_DOG, colours=no_colours)
    assert (missing.partial, missing.strict, missing.official) == (0.0, 0.0, 0.0)  # count 0 and colour 0


def test_part_of_the_colours_is_part_of_the_term():
    task = Task("color_attr", (Clause("dog", 2, "red"),))
    found = verdict(task, thing("dog"), thing("dog", 20), colours=lambda label, found: ["red", "blue"])
    assert found.partial == pytest.approx((1.0 + 0.5) / 2)
    assert found.strict == 0.0


def test_official_looks_at_the_colour_of_the_surest():
    asked: list[list[float]] = []

    def by_score(label: str, found: Sequence[FoundObject]) -> list[str]:
        asked.append([one.score for one in found])
        return ["red" if one.score > 0.9 else "blue" for one in found]

    found = verdict(RED_DOG, thing("dog", score=0.5), thing("dog", 20, score=0.99), colours=by_score)
    assert (found.partial, found.official) == (0.0, 1.0)  # (1 - 1 + 0) / 2, and the surest is red
    assert asked == [[0.99]]


def test_colours_of_the_same_objects_are_asked_for_once():
    asked: list[str] = []

    def remember(label: str, found: Sequence[FoundObject]) -> list[str]:
        asked.append(label)
        return ["red"]

    verdict(RED_DOG, thing("dog"), colours=remember)
    assert asked == ["dog"]


ABOVE = Task("position", (Clause("spoon", 1), Clause("bottle", 1, None, ("above", 0))))


def test_position_that_holds_is_a_whole_point():
    assert verdict(ABOVE, thing("spoon", 0, 40), thing("bottle")) == Verdict(1.0, 1.0, 1.0)


def test_position_that_is_violated_is_none():
    below = thing("spoon"), thing("bottle", 0, 40)
    ours, theirs = verdict(ABOVE, *below), verdict(ABOVE, *below, compat="flow_grpo")
    assert ours.partial == pytest.approx((1 + 1 + 0) / 3)
    assert theirs.partial == pytest.approx((1 + 1 + 0 + 1) / 4)  # the released server adds the point all the same
    assert (ours.strict, ours.official) == (theirs.strict, theirs.official) == (0.0, 0.0)


@pytest.mark.parametrize("compat", ["none", "flow_grpo"])
def test_position_without_a_target_is_none_in_either(compat: str):
    without = verdict(ABOVE, thing("bottle"), compat=compat)
    assert without.partial == pytest.approx((0 + 1 + 0) / 3)
    assert without.reasons == ("1 spoon wanted, 0 found", "nothing right for bottle to be above")


def test_wrong_count_loses_the_position_too():
    assert verdict(ABOVE, thing("spoon")).partial == pytest.approx((1 + 0 + 0) / 3)


def test_colour_and_position_of_one_clause():
    task = Task("x", (Clause("spoon", 1), Clause("bottle", 1, "red", ("above", 0))))
    placed = thing("spoon", 0, 40), thing("bottle")
    assert verdict(task, *placed, colours=all_red).partial == 1.0
    assert verdict(task, *placed, colours=lambda label, found: ["blue"]).partial == pytest.approx((1 + 1 + 0) / 3)


def test_excluded_things_are_wrong_unless_the_released_server_says_otherwise():
    task = Task("x", (Clause("dog", 1),), (Clause("cat", 1),))
    found = thing("dog"), thing("cat")
    assert verdict(task, *found).strict == verdict(task, *found).official == 0.0
    assert verdict(task, *found).reasons == ("fewer than 1 cat wanted, 1 found",)
    assert verdict(task, *found, compat="flow_grpo").strict == 1.0
    assert verdict(task, thing("dog")).strict == 1.0


def test_what_is_unknown_is_refused():
    with pytest.raises(ValueError, match="compat = 'mine': use one of: none, flow_grpo"):
        verdict(TWO_DOGS, compat="mine")
    with pytest.raises(ValueError, match=r"threshold = 1.5: must lie in \[0, 1\]"):
        KeepingRule(threshold=1.5)
    with pytest.raises(ValueError, match="max_objects = 0: must be at least 1"):
        KeepingRule(max_objects=0)
