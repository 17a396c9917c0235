"""Which text a picture is asked to show."""

from __future__ import annotations

import subprocess
import sys

import pytest

from difalign.reward_models.target_text import read_target_text, without_spaces, without_whitespace


@pytest.mark.parametrize(
    ("prompt", "target"),
    [
        ('a sign that says "OPEN"', "OPEN"),
        ('"Hello World" in fireworks above "New York"', "Hello World"),
        ("a cake with “Happy Birthday” on it", "Happy Birthday"),
        ('a menu "New York\nCoffee"', "New York\nCoffee"),
    ],
)
def test_first_quotation_is_the_target(prompt: str, target: str):
    assert read_target_text(prompt) == target
    assert read_target_text(prompt, {"other": 1}) == target


def test_metadata_says_more_than_quotation_marks():
    assert read_target_text('a sign that says "OPEN"', {"target_text": "CLOSED"}) == "CLOSED"
    assert read_target_text("a sign", {"target_text": "CLOSED"}) == "CLOSED"


@pytest.mark.parametrize("prompt", ["a sign", 'an inch is 1" long', 'says "" and "OPEN"', 'says " \n"'])
def test_prompt_without_target_is_refused(prompt: str):
    with pytest.raises(ValueError, match="does not say which text is to be shown; quote it"):
        read_target_text(prompt)


@pytest.mark.parametrize("target", ["", "  ", 3, None])
def test_metadata_without_text_is_refused_and_not_passed_over(target: object):
    with pytest.raises(ValueError, match=r"target_text = .*: must be text"):
        read_target_text('a sign that says "OPEN"', {"target_text": target})


def test_only_the_released_normalisation_keeps_line_ends():
    assert without_whitespace("New York\n\tCoffee") == "newyorkcoffee"
    assert without_spaces("New York\nCoffee") == "newyork\ncoffee"


def test_prompts_are_checked_without_torch():
    code = "import sys, difalign.reward_models.target_text; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
