"""Configurations compared key by key."""

from __future__ import annotations

import pytest

from difalign.core.config_diff import ABSENT, Difference, differences, flatten


def test_flatten_keeps_lists_and_empty_mappings_as_values() -> None:
    assert flatten({"a": {"b": {"c": 1}, "d": [1, {"e": 2}]}, "f": {}}) == {"a.b.c": 1, "a.d": [1, {"e": 2}], "f": {}}


def test_differences_name_key_and_both_values() -> None:
    first = {"seed": 0, "training": {"rollouts": 3, "betas": [0.9, 0.99]}, "only": None}
    second = {"seed": 0, "training": {"rollouts": 4, "betas": [0.9, 0.99]}, "other": "x"}
    assert differences(first, second) == (
        Difference("training.rollouts", 3, 4),
        Difference("only", None, ABSENT),
        Difference("other", ABSENT, "x"),
    )


@pytest.mark.parametrize(("one", "two", "same"), [(1, 1.0, True), (1, True, False), (0, False, False), ("1", 1, False)])
def test_what_counts_as_the_same(one: object, two: object, same: bool) -> None:
    assert (not differences({"a": one}, {"a": two})) is same


def test_a_section_against_a_value() -> None:
    assert differences({"a": {"b": 1}}, {"a": 2}) == (Difference("a.b", 1, ABSENT), Difference("a", ABSENT, 2))
