"""Which files are pictures, in which order, and what is said of those that are none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from difalign.build.picture_files import conversion_notice, find_pictures, natural, open_picture, read_pixels
from difalign.core.errors import ConfigError
from tests.build.pictures import draw, fill


def test_names_go_by_their_numbers(tmp_path: Path):
    fill(tmp_path, dict.fromkeys(("b10.png", "b9.png", "a2.png", "sub/c1.png"), "a red circle"))
    assert [picture.name for picture in find_pictures([str(tmp_path)])] == ["a2", "b9", "b10", "sub/c1"]
    assert natural("b9") < natural("b10") < natural("c")


def test_pattern_names_are_below_the_folder_before_it(tmp_path: Path):
    fill(tmp_path, dict.fromkeys(("x/a1.png", "x/a2.png", "x/b1.png"), "a red circle"))
    assert [picture.name for picture in find_pictures([str(tmp_path / "x" / "a*.png")])] == ["a1", "a2"]
    assert [picture.name for picture in find_pictures([str(tmp_path / "*" / "a1.png")])] == ["x/a1"]


def test_a_file_named_twice_is_read_once(tmp_path: Path):
    fill(tmp_path, {"a.png": "a red circle"})
    assert len(find_pictures([str(tmp_path), str(tmp_path / "a.png")])) == 1


def test_what_is_not_rgb_is_told_once_and_converted(tmp_path: Path):
    picture = draw("a red circle")
    picture.save(tmp_path / "a.png")
    picture.convert("L").save(tmp_path / "b.png")
    picture.convert("RGBA").save(tmp_path / "c.png")
    found = find_pictures([str(tmp_path)])
    notice = conversion_notice(found)
    assert notice is not None
    assert "2 of 3" in notice
    assert "1 L, 1 RGBA" in notice
    assert conversion_notice(found[:1]) is None
    shapes = {read_pixels(item).shape for item in found}
    assert shapes == {(36, 36, 3)}
    assert np.array_equal(read_pixels(found[2]), np.asarray(picture))


def test_a_turned_photograph_is_read_as_it_is_shown(tmp_path: Path):
    picture = Image.new("RGB", (20, 10))
    exif = picture.getexif()
    exif[0x0112] = 6  # turned by a quarter
    picture.save(tmp_path / "a.jpg", exif=exif)
    (found,) = find_pictures([str(tmp_path)])
    assert (found.height, found.width) == (20, 10)
    assert open_picture(found.path).size == (10, 20)


def test_what_cannot_be_read_is_named(tmp_path: Path):
    fill(tmp_path, {"a.png": "a red circle"})
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.jpg").write_text("hello")
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(ConfigError) as raised:
        find_pictures([str(tmp_path)])
    said = str(raised.value)
    assert said.startswith("3 problems")
    assert all(name in said for name in ("cut.png: cannot be read", "text.jpg: is no picture", "deep.png: has more"))
    assert "a.png" not in said


@pytest.mark.parametrize(
    ("source", "said"), [("empty", "holds no picture"), ("empty/*.png", "fits the pattern"), ("nowhere", "no such")]
)
def test_sources_without_pictures(tmp_path: Path, source: str, said: str):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=said):
        find_pictures([str(tmp_path / source)])
