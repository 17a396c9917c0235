"""The size of a JPEG file as a reward."""

from __future__ import annotations

import io

import pytest
import torch
from PIL import Image

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


@pytest.mark.parametrize("quality", [0, 96])
def test_qualities_out_of_range_are_refused(quality: int):
    with pytest.raises(ValueError, match=rf"quality = {quality}: must lie in \[1, 95\]"):
        Compressibility(quality=quality)
