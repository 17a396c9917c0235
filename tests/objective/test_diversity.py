"""The distance between samples of one prompt: closed forms, and what it must not depend on."""

from __future__ import annotations

import pytest
import torch

from difalign.objective.diversity import pairwise_distance, thumbnails


def test_equal_samples_are_no_distance_apart() -> None:
    vectors = torch.rand(1, 5).expand(4, 5)
    assert pairwise_distance(vectors, torch.zeros(4, dtype=torch.int64)).tolist() == [0.0]


def test_distance_is_the_root_mean_square_over_pairs_of_one_group() -> None:
    # group 7: rows 0, 1, 3 with pairwise differences 1, 2, 3 in each of four entries; group 2 has one row
    vectors = torch.tensor([[0.0], [1.0], [50.0], [3.0]]).expand(4, 4)
    assert pairwise_distance(vectors, torch.tensor([7, 7, 2, 7])).tolist() == pytest.approx([2.0])


def test_independent_noise_has_its_closed_form() -> None:
    """Two independent N(0, s^2) entries differ by s sqrt(2) in root mean square."""
    noise = 0.3 * torch.randn(40, 20_000, generator=torch.Generator().manual_seed(0))
    assert float(pairwise_distance(noise, torch.zeros(40, dtype=torch.int64))) == pytest.approx(0.3 * 2**0.5, rel=5e-3)


def test_a_group_of_one_says_nothing() -> None:
    assert pairwise_distance(torch.rand(3, 2), torch.arange(3)).shape == (0,)


@pytest.mark.parametrize("shape", [(2, 3, 32, 48), (2, 5, 3, 16, 16)], ids=["image", "video"])
def test_thumbnails_average_over_blocks(shape) -> None:
    media = torch.rand(*shape, generator=torch.Generator().manual_seed(0))
    small = thumbnails(media)
    height, width = shape[-2] // 8, shape[-1] // 8
    blocks = media.unfold(-2, height, height).unfold(-2, width, width).mean(dim=(-2, -1))
    torch.testing.assert_close(small, blocks.flatten(1))


@pytest.mark.parametrize("shape", [(3, 4), (3, 3, 4, 4)])
def test_what_is_small_stays_as_it_is(shape) -> None:
    media = torch.rand(*shape)
    assert torch.equal(thumbnails(media), media.flatten(1))
