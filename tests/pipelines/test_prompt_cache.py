"""Each text once, each text alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from difalign.pipelines.prompt_cache import PromptCache, padded


class Counter:
    """Encodes a text as its length, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, text: str) -> tuple[Tensor, Tensor]:
        self.asked.append(text)
        return torch.full((1, 2), float(len(text))), torch.full((1,), -float(len(text)))


def test_table_holds_distinct_texts_in_order_of_appearance():
    cache, encode = PromptCache(), Counter()
    (first, second), index = cache.table(["aaa", "b", "aaa", "cc"], encode)
    assert encode.asked == ["aaa", "b", "cc"]
    assert first.tolist() == [[3.0, 3.0], [1.0, 1.0], [2.0, 2.0]]
    assert second.tolist() == [-3.0, -1.0, -2.0]
    assert index.tolist() == [0, 1, 0, 2]
    assert len(cache) == 3


def test_known_texts_are_not_encoded_again_until_cleared():
    cache, encode = PromptCache(), Counter()
    cache.embed("aaa", encode)
    cache.table(["aaa", "b"], encode)
    assert encode.asked == ["aaa", "b"]
    cache.clear()
    assert len(cache) == 0
    cache.embed("aaa", encode)
    assert encode.asked == ["aaa", "b", "aaa"]


def test_refuses_no_texts():
    with pytest.raises(ValueError, match="no prompts"):
        PromptCache().table([], Counter())


def test_texts_of_different_lengths_are_padded_and_masked():
    texts = {"long": torch.ones(1, 3, 2), "short": torch.full((1, 1, 2), 5.0)}
    (table, mask), index = PromptCache().table(["short", "long", "short"], lambda t: (texts[t],), stack=padded)
    assert table.tolist() == [[[5.0, 5.0], [0.0, 0.0], [0.0, 0.0]], [[1.0, 1.0]] * 3]
    assert mask.tolist() == [[True, False, False], [True, True, True]]
    assert index.tolist() == [0, 1, 0]


def test_texts_of_one_length_need_no_mask():
    table = padded([(torch.ones(1, 2, 3),), (torch.zeros(1, 2, 3),)])
    assert [tuple(column.shape) for column in table] == [(2, 2, 3)]
