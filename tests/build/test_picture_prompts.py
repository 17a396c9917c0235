"""Prompts find their pictures: one for all, by order, by name, by file beside."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from difalign.build.picture_files import PictureFile, find_pictures
from difalign.build.picture_prompts import match_prompts
from difalign.core.errors import ConfigError
from tests.build.pictures import fill


@pytest.fixture
def pictures(tmp_path: Path) -> list[PictureFile]:
    fill(tmp_path / "out", dict.fromkeys(("1.png", "2.png", "10.png"), "a red circle"))
    return find_pictures([str(tmp_path / "out")])


def texts(pictures: list[PictureFile], prompts: str) -> list[str]:
    return [prompt.text for prompt in match_prompts(pictures, prompts)]


def test_one_text_is_everyones(pictures: list[PictureFile]):
    assert texts(pictures, "a red circle") == ["a red circle"] * 3


def test_lines_go_by_the_order_of_pictures_and_may_repeat(pictures: list[PictureFile], tmp_path: Path):
    (tmp_path / "p.txt").write_text("# title\na\n\nb\na\n")
    assert texts(pictures, str(tmp_path / "p.txt")) == ["a", "b", "a"]


def test_rows_find_pictures_by_name_whatever_their_order(pictures: list[PictureFile], tmp_path: Path):
    names = ["10.png", str(tmp_path / "out" / "1.png"), "out/2.png"]
    rows = [{"image": name, "prompt": f"p {number}", "target": number} for number, name in enumerate(names)]
    file = tmp_path / "p.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = match_prompts(pictures, str(file))
    assert [prompt.text for prompt in found] == ["p 1", "p 2", "p 0"]
    assert dict(found[0].metadata)["target"] == 1
    assert "image" not in found[0].metadata


def test_columns_of_a_table(pictures: list[PictureFile], tmp_path: Path):
    (tmp_path / "p.csv").write_text('image,prompt\n2.png,"a, b"\n1.png,c\n10.png,d\n')
    assert texts(pictures, str(tmp_path / "p.csv")) == ["c", "a, b", "d"]


def test_files_of_the_same_name(pictures: list[PictureFile], tmp_path: Path):
    for name in ("1", "2", "10"):
        (tmp_path / "out" / f"{name}.txt").write_text(f"prompt\n of {name}\n")
    assert texts(pictures, str(tmp_path / "out")) == ["prompt of 1", "prompt of 2", "prompt of 10"]
    (tmp_path / "out" / "2.txt").unlink()
    with pytest.raises(ConfigError, match=r"2\.png: has no prompt; write it to .*2\.txt"):
        match_prompts(pictures, str(tmp_path / "out"))


def test_numbers_differ(pictures: list[PictureFile], tmp_path: Path):
    (tmp_path / "p.txt").write_text("a\nb\n")
    with pytest.raises(ConfigError, match=r"2 prompts for 3 pictures.*1\.png, \.\.\., 10\.png"):
        match_prompts(pictures, str(tmp_path / "p.txt"))


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (["1.png", "2.png"], r"10\.png: has no row"),
        (["1.png", "2.png", "10.png", "4.png"], r"line 4: image = '4\.png': is none of the pictures"),
        (["1.png", "2.png", "1.png"], r"line 3: image = '1\.png': has a prompt already, line 1"),
        (["1.png", "2.png", None], "line 3: names no picture"),
        (["1.png", "2.png", 10], "image = 10: must be the path"),
    ],
)
def test_rows_that_do_not_fit(pictures: list[PictureFile], tmp_path: Path, rows: list[object], said: str):
    file = tmp_path / "p.jsonl"
    content = [{"prompt": "a"} | ({} if name is None else {"image": name}) for name in rows]
    file.write_text("".join(json.dumps(row) + "\n" for row in content))
    with pytest.raises(ConfigError, match=said):
        match_prompts(pictures, str(file))


def test_a_name_in_two_folders_means_neither(tmp_path: Path):
    fill(tmp_path, {"a/1.png": "a red circle", "b/1.png": "a red circle"})
    pictures = find_pictures([str(tmp_path / "a"), str(tmp_path / "b")])
    file = tmp_path / "p.jsonl"
    file.write_text('{"image": "1.png", "prompt": "x"}\n')
    with pytest.raises(ConfigError, match="is the name of several pictures"):
        match_prompts(pictures, str(file))
    file.write_text('{"image": "b/1.png", "prompt": "x"}\n{"image": "a/1.png", "prompt": "y"}\n')
    assert texts(pictures, str(file)) == ["y", "x"]


@pytest.mark.parametrize("prompts", ["nowhere.txt", "p.json", "  "])
def test_what_is_no_prompt(pictures: list[PictureFile], prompts: str):
    with pytest.raises(ConfigError):
        match_prompts(pictures, prompts)
