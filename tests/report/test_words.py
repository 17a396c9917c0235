from __future__ import annotations

import pytest

from difalign.report import words

NAN = float("nan")


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(3.21, "3.2 s"), (42.4, "42 s"), (59.7, "1 min 00 s"), (252, "4 min 12 s"), (11100, "3 h 05 min"), (None, "–")],
)
def test_durations(seconds: float | None, expected: str) -> None:
    assert words.duration(seconds) == expected


@pytest.mark.parametrize(
    ("value", "expected"), [(0.0811, "+0.081"), (-0.0119, "−0.012"), (-0.0001, "0.000"), (0, "0.000"), (None, "–")]
)
def test_signs(value: float | None, expected: str) -> None:
    assert words.signed(value) == expected


@pytest.mark.parametrize("value", [NAN, float("inf"), "NaN", "-Infinity"])
def test_what_is_not_finite_is_said_in_words(value: object) -> None:
    for text in (words.score(value), words.signed(value), words.compact(value)):
        assert text == "not finite"
    assert words.finite(value) is None


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        ([0.01, 0.2], "above 0"),
        ([-0.2, -0.01], "below 0"),
        ([-0.01, 0.2], "not distinguishable from 0"),
        ([0.0, 0.2], "not distinguishable from 0"),
        (None, "no interval"),
        ([NAN, 0.1], "no interval"),
    ],
)
def test_an_interval_says_no_more_than_it_may(bounds: object, expected: str) -> None:
    assert words.verdict(bounds) == expected


def test_the_sentence_names_the_gain_its_interval_and_its_doubts() -> None:
    clear = words.gain_sentence({"gain": 0.08, "gain_ci95": [0.05, 0.11], "prompts": 300})
    assert clear == "Training raised the held-out score by +0.080 (95 % interval +0.050 to +0.110)."
    assert "not distinguishable from 0" in words.gain_sentence({"gain": 0.08, "gain_ci95": [-0.05, 0.11]})
    assert "lowered" in words.gain_sentence({"gain": -0.08, "gain_ci95": [-0.15, -0.01]})
    assert "too narrow" in words.gain_sentence({"gain": 0.08, "gain_ci95": [0.05, 0.11], "prompts": 4})
    assert "no interval" in words.gain_sentence({"gain": 0.08, "gain_ci95": None})
    assert "could not be computed" in words.gain_sentence({"gain": NAN})


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.00033, "0.00033"), (3.918e-5, "3.918e−5"), (57600, "57\u202f600"), (1.0, "1"), (-2, "−2"), (True, "–")],
)
def test_compact_numbers(value: object, expected: str) -> None:
    assert words.compact(value) == expected
