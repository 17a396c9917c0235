"""The size of a JPEG file as a reward."""

from __future__ import annotations

import io

import pytest
import torch
from PIL import Image

from difalign.build.cards import load_reward_card
from difalign.core.protocols import RewardModel
from difalign.reward_models.compressibility import Compressibility


def test_is_a_reward():
    assert isinstance(Compressibility(), RewardModel)


def test_score_is_minus_the_kilobytes_of_the_file():
    media = torch.rand(2, 3, 24, 16, generator=torch.Generator().manual_seed(0))
    scores = Compressibility().score(media, ["a", "b"]).scores
    for row in range(2):
        buffer = io.BytesIO()
        array = (media[row] * 255).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(array).save(buffer, format="JPEG", quality=95)
        assert float(scores[row]) == pytest.approx(-len(buffer.getvalue()) / 1000)


def test_pixels_are_rounded_and_not_cut():
    media = torch.full((1, 3, 16, 16), 100 / 255)
    media[..., ::2] += 0.45 / 255  # still 100 when rounded
    whole = torch.full((1, 3, 16, 16), 100 / 255)
    assert torch.equal(Compressibility().score(media, [""]).scores, Compressibility().score(whole, [""]).scores)
    media[..., ::2] += 0.2 / 255  # 101 now
    assert Compressibility().score(media, [""]).scores < Compressibility().score(whole, [""]).scores


def test_plain_pictures_score_above_noise_and_low_quality_above_high():
    noise, plain = torch.rand(1, 3, 32, 32), torch.full((1, 3, 32, 32), 0.5)
    assert Compressibility().score(plain, [""]).scores > Compressibility().score(noise, [""]).scores
    assert Compressibility(quality=20).score(noise, [""]).scores > Compressibility().score(noise, [""]).scores


def test_sign_turns_the_wish_round():
    media = torch.rand(2, 3, 24, 16, generator=torch.Generator().manual_seed(0))
    small, large = Compressibility(), Compressibility(sign=1)
    assert torch.equal(large.score(media, ["", ""]).scores, -small.score(media, ["", ""]).scores)
    assert (large.score(media, ["", ""]).scores > 0).all()


def test_one_picture_does_not_change_the_score_of_another():
    media = torch.rand(3, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    together = Compressibility().score(media, [""] * 3).scores
    assert together.tolist() == [float(Compressibility().score(one[None], [""]).scores) for one in media]


def test_cards_have_the_constants_of_published_code():
    small, large = (load_reward_card(name).card for name in ("compressibility", "incompressibility"))
    assert (small.options["sign"], large.options["sign"]) == (-1, 1)
    assert {name: (scale.mean, scale.std) for name, scale in small.scales.items()} == {
        "ddpo": (0.0, 1.0),
        "flow_grpo": (0.0, 500.0),
    }


def test_media_are_checked():
    with pytest.raises(ValueError, match="compressibility reads RGB images"):
        Compressibility().score(torch.rand(1, 1, 8, 8), [""])
    with pytest.raises(ValueError, match="compressibility has no gradient to the pixels"):
        Compressibility().score(torch.rand(1, 3, 8, 8).requires_grad_(), [""])


@pytest.mark.parametrize("sign", [0, 2])
def test_signs_that_are_none_are_refused(sign: int):
    with pytest.raises(ValueError, match=f"sign = {sign}: must be -1"):
        Compressibility(sign=sign)


@pytest.mark.parametrize("quality", [0, 96])
def test_qualities_out_of_range_are_refused(quality: int):
    with pytest.raises(ValueError, match=rf"quality = {quality}: must lie in \[1, 95\]"):
        Compressibility(quality=quality)
