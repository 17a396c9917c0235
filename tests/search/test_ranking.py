"""Who comes first: ties, missing scores, and the sum of ranks."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from difalign.search.ranking import Judged, at_random, by_score, rank_sum

NAN = math.nan
scores = st.floats(-5, 5)


def judged(*components: list[float]) -> Judged:
    count = len(components[0])
    named = {f"c{i}": values for i, values in enumerate(components)}
    return Judged(tuple(range(count)), tuple(range(100, 100 + count)), tuple(components[0]), named)


def test_the_highest_score_comes_first_and_ties_go_to_the_lower_index():
    assert by_score(judged([1.0, 3.0, 3.0, 2.0])) == [1, 2, 3, 0]
    assert by_score(Judged((7, 2), (0, 0), (1.0, 1.0))) == [1, 0]


def test_candidates_without_a_score_come_last_by_index():
    assert by_score(judged([NAN, -9.0, NAN, 1.0])) == [3, 1, 0, 2]
    assert by_score(judged([NAN, NAN])) == [0, 1]


@given(st.permutations(range(6)))
def test_a_random_order_depends_on_the_candidates_alone(order):
    shuffled = Judged(tuple(order), tuple(100 + i for i in order), (NAN,) * 6)
    plain = [judged([0.0] * 6).seeds[i] for i in at_random(judged([0.0] * 6))]
    assert [shuffled.seeds[i] for i in at_random(shuffled)] == plain


@given(st.lists(scores, min_size=1, max_size=8))
def test_invariant_14_one_objective_ranks_as_its_score(values):
    assert rank_sum({"c0": 2.5})(judged(values)) == by_score(judged(values))


@given(st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9)), min_size=1, max_size=8))
def test_invariant_14_a_monotone_transform_of_an_objective_changes_nothing(rows):
    first, second = [float(a) for a, _ in rows], [float(b) for _, b in rows]
    rule = rank_sum({"c0": 1.0, "c1": 0.3})
    assert rule(judged(first, second)) == rule(judged([math.exp(a) for a in first], [b**3 - 7 for b in second]))


@given(st.lists(st.tuples(scores, scores), min_size=2, max_size=8, unique=True))
def test_invariant_14_the_dominated_never_beats_its_dominator(rows):
    order = rank_sum({"c0": 1.0, "c1": 1.0})(judged([a for a, _ in rows], [b for _, b in rows]))
    place = {row: i for i, row in enumerate(order)}
    for i, (a, b) in enumerate(rows):
        for j, (c, d) in enumerate(rows):
            if a >= c and b >= d and i != j:
                assert place[i] < place[j]


def test_rank_sum_by_hand():
    # Ranks 0 1 2 3 and 3 2 0.5 0.5: sums 3, 3, 2.5, 3.5.
    assert rank_sum({"c0": 1, "c1": 1})(judged([1.0, 2, 3, 4], [9.0, 5, 1, 1])) == [3, 0, 1, 2]


def test_a_candidate_that_lacks_an_objective_is_last_and_takes_no_rank():
    order = rank_sum({"c0": 1, "c1": 1})(judged([1.0, 2.0, 9.0], [2.0, 3.0, NAN]))
    assert order == [1, 0, 2]
    assert rank_sum({"c0": 1})(judged([NAN, NAN])) == [0, 1]


@pytest.mark.parametrize("weights", [{}, {"c0": 0.0}, {"c0": -1.0}, {"c0": NAN}])
def test_weights_that_rank_nothing_are_refused(weights):
    with pytest.raises(ValueError, match="weights above 0"):
        rank_sum(weights)


def test_a_component_that_is_not_there_is_named():
    with pytest.raises(ValueError, match=r"rank_sum of other: .* it has: c0"):
        rank_sum({"other": 1.0})(judged([1.0]))


def test_every_rule_orders_everybody_once():
    orders = [rule(judged([2.0, 1.0, NAN])) for rule in (by_score, at_random, rank_sum({"c0": 1.0}))]
    assert all(a == b for a, b in pairwise(sorted(order) for order in orders))
