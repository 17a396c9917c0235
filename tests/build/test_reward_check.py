"""The check finds every way in which a reward can break what its card says, and nothing in one that does not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from difalign.build.cards import Found, RewardCard, load_reward_card
from difalign.build.check_pictures import check_pictures, digest
from difalign.build.reward_check import CheckResult, StoredValues, check_reward, read_stored, write_stored
from difalign.core.errors import ConfigError

OFFLINE = (
    "verifier",
    "tiny-clip",
    "compressibility",
    "incompressibility",
    "ocr",
    "image-class",
    "prompted-image-class",
)


def found(function: str, *, differentiable: bool = False, groupwise: bool = False) -> Found[RewardCard]:
    card = RewardCard(
        name=function,
        summary="x",
        licence="x",
        target=f"tests.build.flawed_rewards:{function}",
        differentiable=differentiable,
        groupwise=groupwise,
    )
    return Found(card, Path("card.yaml"))


def check(function: str, stored: StoredValues | None = None, **claims: bool) -> CheckResult:
    return check_reward(found(function, **claims), stored)


def test_a_reward_that_is_right_passes():
    result = check("bright", differentiable=True)
    assert (result.status, result.remarks) == ("ok", ("no stored values",))
    assert len(result.scores) == len(check_pictures())
    assert result.reads_prompt is False
    assert check("wordy").reads_prompt is True


@pytest.mark.parametrize(
    ("function", "differentiable", "said"),
    [
        ("relative", False, "otherwise alone than in a batch"),
        ("fickle", False, "other scores the second time"),
        ("silent", True, "carry no gradient"),
        ("flat", True, "gradient of zero"),
        ("leaking", True, "reaches other pictures"),
        ("short", False, r"shape \(3,\) float32 for 4 pictures"),
        ("failing", False, "could not score 1 of 4 pictures: too dark"),
        ("refusing", False, "refused the pictures: no"),
    ],
)
def test_a_flaw_is_found(function: str, differentiable: bool, said: str):
    result = check(function, differentiable=differentiable)
    assert result.status == "failed"
    assert any(re.search(said, remark) for remark in result.remarks), result.remarks


def test_a_groupwise_reward_may_compare_its_batch():
    result = check("relative", groupwise=True, differentiable=True)
    assert result.status == "ok", result.remarks


def stored_of(result: CheckResult, **changed: float) -> StoredValues:
    scores = tuple(score + changed.get("by", 0.0) for score in result.scores)
    return StoredValues(digest(check_pictures()), {result.name: scores}, {result.name: bool(result.reads_prompt)})


def test_values_that_have_moved_fail():
    result = check("bright")
    assert check("bright", stored_of(result, by=3e-5)).status == "ok"
    moved = check("bright", stored_of(result, by=3e-4))
    assert moved.status == "failed"
    assert "differs from what is stored" in moved.remarks[0]
    other = StoredValues("0" * 64, {"bright": result.scores}, {"bright": False})
    assert "the pictures are not those" in check("bright", other).remarks[0]


def test_what_cannot_run_here_is_skipped_and_says_what_it_lacks(tmp_path: Path):
    for key, value, said in (
        ("requires", "[no_such_module]", "no_such_module is not installed: pip install 'difalign[rewards]'"),
        ("hub_id", "nobody/nothing", "hf download nobody/nothing"),
        ("path", "nowhere", "put it there"),
        ("options", "{url: 'http://127.0.0.1:9/score'}", "no server listens at http://127.0.0.1:9/score"),
    ):
        file = tmp_path / f"{key}.yaml"
        target = "tests.build.flawed_rewards:bright"
        file.write_text(f"name: x\nsummary: x\nlicence: x\ntarget: {target}\n{key}: {value}\n")
        result = check_reward(load_reward_card(str(file)), None)
        assert result.status == "skipped"
        assert said in result.remarks[0]


def test_stored_values_are_read_back_beside_older_ones(tmp_path: Path):
    file = tmp_path / "values.json"
    write_stored([check("bright")], file)
    write_stored([check("wordy")], file)
    stored = read_stored(file)
    assert stored is not None
    assert set(stored.scores) == {"bright", "wordy"}
    assert check("wordy", stored).remarks == ()
    assert check("bright", stored).status == "ok"
    with pytest.raises(ConfigError, match="short failed"):
        write_stored([check("short")], file)


def test_the_pictures_are_those_of_the_shipped_values():
    stored = read_stored()
    assert stored is not None
    assert stored.pictures == digest(check_pictures())
    assert set(OFFLINE) <= set(stored.scores)


@pytest.mark.golden
@pytest.mark.parametrize("name", OFFLINE)
def test_shipped_rewards_give_the_stored_values(name: str):
    result = check_reward(load_reward_card(name), read_stored())
    assert (result.status, result.remarks) == ("ok", ())
