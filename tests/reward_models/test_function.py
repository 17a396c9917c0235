"""A plain function is a reward, whatever sequence of numbers it returns; what it cannot be asked is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from difalign.build.cards import Found, RewardCard
from difalign.build.factory import build_reward
from difalign.core.config_rewards import RewardConfig
from difalign.core.errors import ConfigError
from difalign.core.protocols import RewardModel
from difalign.core.types import RewardOutput
from difalign.reward_models.function import FunctionReward, scores_media

MEDIA = torch.arange(24.0).view(2, 3, 2, 2) / 24
MEANS = [5.5 / 24, 17.5 / 24]


def brightness(media, prompts, times: float = 1.0):
    return [times * float(picture.mean()) for picture in media]


def wanted_brightness(media, prompts, *, metadata, sigma):
    return {"scores": [entry["by"] for entry in metadata], "noise": np.full(len(prompts), sigma)}


@pytest.mark.parametrize(
    "function",
    [
        brightness,
        lambda media, prompts: media.mean(dim=(1, 2, 3)).double(),
        lambda media, prompts: media.numpy().mean(axis=(1, 2, 3)),
        lambda media, prompts: RewardOutput(media.mean(dim=(1, 2, 3))),
    ],
)
def test_numbers_of_any_kind(function):
    output = FunctionReward(function).score(MEDIA, ["a", "b"])
    assert output.scores.tolist() == pytest.approx(MEANS, rel=1e-6)


def test_it_is_told_what_it_asks_for():
    told = FunctionReward(wanted_brightness).score(MEDIA, ["a", "b"], metadata=[{"by": 1}, {"by": 2}], sigma=0.25)
    assert told.scores.tolist() == [1.0, 2.0]
    assert told.components["noise"].tolist() == [0.25, 0.25]


@pytest.mark.parametrize(("said", "words"), [("much", "'much'"), (None, "NoneType"), ({"score": [1.0]}, "'scores'")])
def test_words_are_no_numbers(said, words):
    with pytest.raises(ValueError, match=words):
        FunctionReward(lambda media, prompts: said, name="odd").score(MEDIA, ["a", "b"])


def test_a_card_names_a_function():
    card = RewardCard(name="bright", summary="s", target=f"{__name__}:brightness", licence="MIT", options={"times": 2})
    found = Found(card, __file__)
    reward = build_reward({"bright": found}, {"bright": RewardConfig()}, device="cpu")
    assert reward.score(MEDIA, ["a", "b"]).scores.tolist() == pytest.approx([2 * mean for mean in MEANS], rel=1e-6)
    assert isinstance(reward, RewardModel)
    with pytest.raises(ConfigError, match=r"options\.time.*'times'"):
        build_reward(
            {"bright": Found(card.model_copy(update={"options": {"time": 2}}), __file__)},
            {"bright": RewardConfig()},
            device="cpu",
        )


def test_a_class_or_a_factory_is_no_scorer():
    assert scores_media(brightness)
    assert not scores_media(FunctionReward)
    assert not scores_media(lambda strict_share: None)
    assert not scores_media(FunctionReward.score)  # a method's second parameter is its first
