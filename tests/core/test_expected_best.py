"""The closed form against every subset there is."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from difalign.core.expected_best import expected_best


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=1, max_size=8))
def test_invariant_13_expected_best_is_the_mean_over_all_subsets(rewards):
    pool = torch.tensor(rewards, dtype=torch.float64)
    curve = [float(expected_best(pool, n)) for n in range(1, len(rewards) + 1)]
    for n, value in enumerate(curve, start=1):
        bests = [max(subset) for subset in itertools.combinations(rewards, n)]
        assert value == pytest.approx(sum(bests) / len(bests), abs=1e-12)
    assert curve[0] == pytest.approx(float(pool.mean()))
    assert curve[-1] == pytest.approx(float(pool.max()))
    assert all(b >= a - 1e-12 for a, b in itertools.pairwise(curve))


def test_a_count_outside_the_pool_is_refused():
    for count in (0, 7):
        with pytest.raises(ValueError, match="1 to 6"):
            expected_best(torch.zeros(6), count)
