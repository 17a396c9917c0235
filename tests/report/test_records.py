from __future__ import annotations

import json

import pytest

from difalign.report.records import (
    Evaluation,
    SampleRecord,
    evaluation_from_json,
    evaluation_to_json,
    spread_over_kinds,
)


def records(kinds: str, seeds: int = 1) -> list[SampleRecord]:
    return [
        SampleRecord(f"p{i}", kind, seed, {"total": 0.0}, i) for i, kind in enumerate(kinds) for seed in range(seeds)
    ]


def test_an_evaluation_survives_json() -> None:
    evaluation = Evaluation(3, "tuned", tuple(records("aab", seeds=2)))
    assert evaluation_from_json(json.loads(json.dumps(evaluation_to_json(evaluation)))) == evaluation


@pytest.mark.parametrize("data", [{}, {"rollout": 1, "label": "x"}, {"rollout": 1, "label": "x", "records": [{}]}])
def test_something_else_is_not_an_evaluation(data: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="not an evaluation"):
        evaluation_from_json(data)


def test_shown_samples_are_shared_evenly_among_kinds() -> None:
    rows = records("aaaaaabbbc")
    assert [rows[index].kind for index in spread_over_kinds(rows, limit=6)] == list("aaabbc")


def test_shown_samples_of_a_kind_are_evenly_spaced_over_the_list() -> None:
    assert spread_over_kinds(records("a" * 12), limit=3) == (2, 6, 10)
    assert spread_over_kinds(records("aaaa"), limit=9) == (0, 1, 2, 3)


def test_only_the_first_seed_of_a_prompt_is_shown() -> None:
    rows = records("ab", seeds=3)
    assert [rows[index].seed for index in spread_over_kinds(rows, limit=99)] == [0, 0]


def test_a_grid_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        spread_over_kinds(records("a"), limit=0)
