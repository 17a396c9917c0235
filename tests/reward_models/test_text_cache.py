"""Prompts are read once and alone, the oldest forgotten first, and long ones are cut with one warning."""

from __future__ import annotations

import warnings

import pytest

from difalign.reward_models.text_cache import LengthLimit, TextCache


def test_each_prompt_is_read_once_and_in_order():
    read: list[str] = []
    cache = TextCache(lambda prompt: read.append(prompt) or prompt.upper())
    assert cache.readings(["b", "a", "b", "b"]) == ["B", "A", "B", "B"]
    assert cache.readings(["a", "c"]) == ["A", "C"]
    assert read == ["b", "a", "c"]
    assert len(cache) == 3


def test_the_least_recently_used_is_forgotten():
    read: list[str] = []
    cache = TextCache(lambda prompt: read.append(prompt) or prompt, size=2)
    cache.readings(["a", "b"])
    cache.readings(["a"])
    cache.readings(["c"])  # b goes
    cache.readings(["a", "c"])
    assert read == ["a", "b", "c"]
    assert len(cache) == 2
    cache.readings(["b"])
    assert read == ["a", "b", "c", "b"]


def test_more_prompts_than_it_holds_are_all_answered():
    cache = TextCache(str.upper, size=2)
    assert cache.readings(list("abcda")) == list("ABCDA")
    assert len(cache) == 2
    with pytest.raises(ValueError, match="size = 0"):
        TextCache(str.upper, size=0)


def test_long_prompts_are_announced_once():
    limit = LengthLimit(10, reader="some reward")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        limit.note("short", 10)
    with pytest.warns(UserWarning, match="some reward reads 10 tokens of a prompt, and 'long'... has 11"):
        limit.note("long", 11)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        limit.note("longer", 12)
