"""Rewards that other packages declare: as a class, as a function, as the path of a card."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest
import torch

import difalign
from difalign.build import entry_points
from difalign.build.cards import load_reward_card
from difalign.core.errors import ConfigError

MODULE = "tests.build.flawed_rewards"


@pytest.fixture
def declare(monkeypatch: pytest.MonkeyPatch):
    """Make some entry points the declared ones."""

    def to(*pairs: tuple[str, str]) -> None:
        points = [metadata.EntryPoint(name, value, entry_points.GROUP) for name, value in pairs]
        monkeypatch.setattr(entry_points.metadata, "entry_points", lambda group: points)

    return to


def test_a_class_is_a_reward_with_its_defaults_as_options(declare):
    declare(("my_brightness", f"{MODULE}:Brightness"))
    card = load_reward_card("my-brightness").card
    assert (card.name, card.options, card.differentiable) == ("my-brightness", {"factor": 2.0}, True)
    assert card.summary == "Mean brightness as a class of another package."
    assert card.on_device
    reward = difalign.load_reward("my_brightness", options={"factor": 3.0})
    assert reward.score(torch.ones(2, 3, 4, 4), ["a", "b"]).scores.tolist() == [3.0, 3.0]


def test_a_function_is_a_reward(declare):
    declare(("wordy", f"{MODULE}:wordy"))
    assert load_reward_card("wordy").card.options == {"strength": 1.0}
    scores = difalign.load_reward("wordy").score(torch.zeros(2, 3, 4, 4), ["ab", "abc"]).scores
    assert scores.tolist() == [2.0, 3.0]


def test_a_path_names_a_card(declare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "bright.yaml"
    file.write_text(f"name: bright\nsummary: x\nlicence: MIT\ntarget: {MODULE}:bright\n")
    (tmp_path / "declaring.py").write_text(f"CARD = {str(file)!r}\nOTHER = 'bright.yaml'\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    declare(("bright", "declaring:CARD"), ("lost", "declaring:OTHER"))
    assert load_reward_card("bright").file == file
    with pytest.raises(ConfigError, match="must be an absolute path"):
        load_reward_card("lost")


def test_shipped_names_come_first(declare):
    declare(("verifier", f"{MODULE}:bright"))
    assert load_reward_card("verifier").card.target == "difalign.reward_models.verifier:VerifierReward"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (f"{MODULE}:NUMBER", "is int; must be a class, a function"),
        (f"{MODULE}:brigth", "did you mean 'bright'"),
        ("no_such_package.x:y", "there is no module 'no_such_package'"),
    ],
)
def test_what_is_declared_and_is_no_reward(declare, value: str, said: str):
    declare(("mine", value))
    with pytest.raises(ConfigError, match=said):
        load_reward_card("mine")


def test_two_packages_that_declare_one_name(declare):
    declare(("mine", f"{MODULE}:bright"), ("mine", f"{MODULE}:wordy"))
    with pytest.raises(ConfigError, match="declared by several packages"):
        load_reward_card("mine")
    assert entry_points.entry_point_names() == ("mine",)


def test_names_are_told_without_importing_what_they_name(declare):
    declare(("b", "no_such_package:x"), ("a_c", "no_such_package:y"))
    assert entry_points.entry_point_names() == ("a-c", "b")
