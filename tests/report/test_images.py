from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFont

from difalign.report.images import (
    Pair,
    before_after_grid,
    fit_tile,
    labelled_grid,
    read_tiles,
    save_grid,
    to_uint8,
    wrap_caption,
)
from difalign.report.records import SampleRecord


def record(index: int, prompt: str = "a red circle") -> SampleRecord:
    return SampleRecord(prompt, "single", 0, {"total": 0.5}, index)


def test_torch_and_numpy_give_the_same_bytes() -> None:
    images = np.random.default_rng(0).random((2, 3, 4, 5)).astype(np.float32)
    assert (to_uint8(images) == to_uint8(torch.from_numpy(images))).all()
    assert to_uint8(images)[1, 2, 3, 0] == round(float(images[1, 0, 2, 3]) * 255)


def test_half_precision_and_one_channel_are_taken() -> None:
    pixels = to_uint8(torch.full((1, 1, 2, 2), 0.5, dtype=torch.bfloat16))
    assert pixels.shape == (1, 2, 2, 3)
    assert (pixels == 128).all()


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((3, 4, 4)), "shape"),
        (np.zeros((1, 4, 4, 3)), "channels"),
        (np.full((1, 3, 2, 2), 255.0), r"\[0, 1\]"),
        (np.full((1, 3, 2, 2), np.nan), "finite"),
    ],
)
def test_bad_images_are_refused(images: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_uint8(images)


def test_small_images_grow_by_whole_factors_without_new_colours() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    tile, factor = fit_tile(Image.fromarray(pixels))
    assert (tile.size, factor) == ((128, 128), 4)
    assert (np.asarray(tile) == pixels.repeat(4, axis=0).repeat(4, axis=1)).all()


def test_large_images_shrink_and_keep_their_shape() -> None:
    tile, factor = fit_tile(Image.new("RGB", (1024, 512)))
    assert (tile.size, factor) == ((256, 128), 1)


@pytest.mark.parametrize("size", [(32, 32), (24, 40), (100, 100)])
def test_samples_can_be_cut_out_of_a_saved_grid_to_the_last_bit(tmp_path: Path, size: tuple[int, int]) -> None:
    images = np.random.default_rng(0).random((7, 3, *size))
    records = [record(index, prompt="word " * (3 * index + 1)) for index in range(7)]
    save_grid(labelled_grid(images, records, columns=3), tmp_path / "grid.png")
    tiles = read_tiles(tmp_path / "grid.png")
    assert list(tiles) == [(index, 0) for index in range(7)]
    for index, expected in enumerate(to_uint8(images)):
        assert (np.asarray(tiles[index, 0]) == expected).all()


def test_captions_are_drawn_below_the_image() -> None:
    grid = labelled_grid(np.ones((1, 3, 32, 32)), [record(0)])
    below = np.asarray(grid.image)[grid.places[0].top + 130 :]
    assert (below < 128).any()
    blank = labelled_grid(np.ones((1, 3, 32, 32)), [SampleRecord("", "", 0, {}, 0)])
    assert not (np.asarray(blank.image)[blank.places[0].top + 130 :] < 128).any()


def test_a_grid_needs_one_record_an_image() -> None:
    with pytest.raises(ValueError, match="2 images and 1 records"):
        labelled_grid(np.zeros((2, 3, 4, 4)), [record(0)])
    with pytest.raises(ValueError, match="0 images"):
        labelled_grid(np.zeros((0, 3, 4, 4)), [])
    with pytest.raises(ValueError, match="columns is -1"):
        labelled_grid(np.zeros((1, 3, 4, 4)), [record(0)], columns=-1)


def test_before_stands_left_of_after() -> None:
    red, blue = Image.new("RGB", (32, 32), (255, 0, 0)), Image.new("RGB", (32, 32), (0, 0, 255))
    pixels = np.asarray(before_after_grid([Pair(red, blue, record(0), record(0))]))
    reds = np.nonzero((pixels == (255, 0, 0)).all(axis=-1))[1]
    blues = np.nonzero((pixels == (0, 0, 255)).all(axis=-1))[1]
    assert reds.size == blues.size == 128 * 128
    assert reds.max() < blues.min()


def test_different_prompts_are_not_compared() -> None:
    image = Image.new("RGB", (8, 8))
    with pytest.raises(ValueError, match="differ"):
        before_after_grid([Pair(image, image, record(0), record(1))])
    with pytest.raises(ValueError, match="no pairs"):
        before_after_grid([])


def test_a_foreign_png_has_no_samples_and_a_broken_one_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "foreign.png")
    assert read_tiles(tmp_path / "foreign.png") == {}
    (tmp_path / "broken.png").write_bytes(b"not an image")
    with pytest.raises(ValueError, match=r"broken\.png"):
        read_tiles(tmp_path / "broken.png")


def test_captions_wrap_within_the_width_and_say_what_they_cut() -> None:
    font = ImageFont.load_default(size=13)
    lines = wrap_caption("three blue squares above a very yellow circle " * 5, 128, font)
    assert len(lines) == 3
    assert all(font.getlength(line) <= 128 for line in lines)
    assert lines[-1].endswith("…")
    assert wrap_caption("a red circle", 128, font) == ["a red circle"]
    assert font.getlength(wrap_caption("x" * 200, 128, font)[0]) <= 128
