"""Training captions are of the grammar, of all kinds, never of what is held out."""

from __future__ import annotations

from collections import Counter

import pytest

from difalign.embedded.captions import training_captions
from difalign.embedded.scenes import KINDS, is_held_out, parse_caption


def test_captions_are_distinct_of_all_kinds_and_never_held_out():
    captions = training_captions(600, seed=1)
    specs = [parse_caption(caption) for caption in captions]
    assert len(set(captions)) == 600
    assert not any(is_held_out(spec) for spec in specs)
    kinds = Counter(spec.kind for spec in specs)
    assert set(kinds) == set(KINDS)
    assert kinds["single"] == 19  # all that there are; the others share the rest
    assert max(kinds["two"], kinds["relation"], kinds["count_pair"]) - min(kinds["two"], kinds["relation"]) <= 1


def test_a_smaller_number_is_the_beginning_of_a_larger_one():
    assert training_captions(100, seed=4)[:37] == training_captions(37, seed=4)
    assert training_captions(100, seed=4) != training_captions(100, seed=5)


@pytest.mark.parametrize("number", [0, 10_000])
def test_no_more_than_there_are(number: int):
    with pytest.raises(ValueError, match=r"that are not held out; ask for 1 to 3410"):
        training_captions(number, seed=0)
