"""What no scorer reads is refused with what was found and what to do about it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from difalign.reward_models.media_check import check_media, refuse_gradient

GOOD = torch.rand(2, 3, 8, 8)


@pytest.mark.parametrize(
    ("media", "message"),
    [
        (torch.zeros(2, 8, 8), r"reads RGB images \[N, 3, H, W\] in \[0, 1\], got a tensor of shape \(2, 8, 8\)"),
        (torch.zeros(2, 4, 3, 8, 8), r"reads RGB images .* got a tensor of shape \(2, 4, 3, 8, 8\)"),
        (torch.zeros(2, 1, 8, 8), "got 1 channels .* repeat the grey channel three times"),
        (torch.zeros(2, 4, 8, 8), "got 4 channels .* leave the alpha channel out"),
        (torch.zeros(2, 8, 8, 3), "got 8 channels .* the channels come before height and width"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), r"got torch.uint8; divide 8-bit pixels by 255"),
        (GOOD * 255, r"reads pixels in \[0, 1\], got values from .* to 2\d\d.*; clamp them, divide 8-bit ones by 255"),
        (GOOD * 2 - 1, r"got values from -0\.9.* map \[-1, 1\] by \(x \+ 1\) / 2"),
        (GOOD / 0, "got values from (inf|nan) to (inf|nan)"),
        (torch.full((2, 3, 8, 8), torch.nan), "got values from nan to nan"),
        (torch.zeros(0, 3, 8, 8), "0 images but 2 prompts"),
        (torch.zeros(2, 3, 0, 8), r"images without a pixel, shape \(2, 3, 0, 8\)"),
        (GOOD[:1], "1 images but 2 prompts; give one prompt an image"),
    ],
    ids=["3d", "clip", "grey", "rgba", "last", "uint8", "255", "-1", "inf", "nan", "empty", "no side", "number"],
)
def test_what_no_scorer_reads(media: Tensor, message: str):
    with pytest.raises(ValueError, match=message):
        check_media(media, ["a", "b"], reader="some reward")


def test_no_images_at_all():
    with pytest.raises(ValueError, match="some reward was handed no images; give at least one"):
        check_media(GOOD[:0], [], reader="some reward")


@pytest.mark.parametrize("media", [GOOD, GOOD.half(), GOOD.bfloat16(), GOOD.double(), GOOD * 1.001])
def test_what_rounding_may_do_is_read(media: Tensor):
    check_media(media, ["a", "b"], reader="some reward")


def test_clips_where_they_are_read():
    check_media(torch.rand(2, 5, 3, 8, 8), ["a", "b"], reader="some reward", clips=True)
    check_media(GOOD, ["a", "b"], reader="some reward", clips=True)
    with pytest.raises(ValueError, match=r"or clips \[N, F, 3, H, W\] in \[0, 1\], got 1 channels"):
        check_media(torch.rand(2, 5, 1, 8, 8), ["a", "b"], reader="some reward", clips=True)


def test_a_gradient_is_refused_where_there_is_none():
    followed = GOOD.clone().requires_grad_(True)
    refuse_gradient(GOOD, reader="some reward")
    with torch.no_grad():
        refuse_gradient(followed, reader="some reward")
    with pytest.raises(ValueError, match="some reward has no gradient to the pixels; detach them"):
        refuse_gradient(followed, reader="some reward")
