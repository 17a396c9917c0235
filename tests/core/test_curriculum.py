"""Backward progressive intervals: the published staircase, its variants, and that lengths never shrink."""

from __future__ import annotations

from collections import Counter

import pytest

from difalign.core import curriculum


@pytest.mark.golden
def test_the_published_staircase() -> None:
    """B2-DiffuRL, released script: 14 to 20 of 20 steps in 100 stages."""
    lengths = [curriculum.linear_floor(stage, first=14, last=20, stages=100) for stage in range(100)]
    starts = {length: lengths.index(length) for length in range(14, 21)}
    assert starts == {14: 0, 15: 15, 16: 29, 17: 43, 18: 58, 19: 72, 20: 86}
    assert Counter(lengths) == {14: 15, 15: 14, 16: 14, 17: 15, 18: 14, 19: 14, 20: 14}
    assert lengths == sorted(lengths)
    assert curriculum.linear_floor(1000, first=14, last=20, stages=100) == 20


def test_the_rounded_staircase_gives_its_ends_half_as_much() -> None:
    lengths = [curriculum.linear_round(stage, first=1, last=4, stages=13) for stage in range(13)]
    assert Counter(lengths) == {1: 2, 2: 5, 3: 3, 4: 3}  # 1.5 and 2.5 round to 2, 3.5 to 4: half to even
    assert lengths == sorted(lengths)
    assert (lengths[0], lengths[-1]) == (1, 4)
    assert curriculum.linear_round(0, first=3, last=9, stages=1) == 3
    assert curriculum.linear_round(99, first=1, last=4, stages=13) == 4


def test_cycles_begin_again() -> None:
    """Five levels between 1 and 20, ten times over."""
    lengths = [curriculum.cyclic(stage, first=1, last=20, stages=5) for stage in range(50)]
    assert lengths == [1, 5, 9, 13, 17] * 10


def test_a_list_keeps_its_last_length() -> None:
    assert [curriculum.listed(stage, (3, 3, 8)) for stage in range(5)] == [3, 3, 8, 8, 8]
