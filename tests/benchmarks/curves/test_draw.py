"""Pictures and tables of made-up runs: files, colours at their places, and sentences that the data bear out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageColor

from benchmarks.curves.bands import Band
from benchmarks.curves.draw import draw_all
from benchmarks.curves.methods import FAMILIES, Comparison
from benchmarks.curves.panel import COLOURS, Named, draw_panel, spread_out
from benchmarks.curves.rows import newest_complete, runs_of
from benchmarks.curves.table import compared, write_table
from tests.benchmarks.curves.made_up_runs import lines_of

FAMILY = FAMILIES["tiny-sd3"]


def lines(gap: float, *, clock: str = "seconds") -> list[dict[str, object]]:
    """Two methods of three seeds; one ends ``gap`` above the other."""
    return [
        line
        for method, add in (("flow_grpo", 0.0), ("tempflow", gap))
        for seed in range(3)
        for line in lines_of(method, seed, [0.4, 0.44 + add / 2 + 0.01 * seed, 0.5 + add + 0.01 * seed], clock=clock)
    ]


def sentence(gap: float) -> str:
    runs = newest_complete(runs_of(lines(gap)))
    return compared(FAMILY, runs, Comparison("tempflow", "flow_grpo"), clock="seconds")


def test_sentence_says_what_the_data_say():
    assert "the bands touch everywhere" in sentence(0.005)
    assert sentence(0.1).endswith("; at 20 s 0.610 to 0.510 (+0.100).")
    assert "all seeds above all of the baseline's from " in sentence(0.1)
    assert " to 20 s; " in sentence(0.1)
    assert "all seeds **below** all of the baseline's from " in sentence(-0.1)


def test_one_seed_makes_no_band():
    runs = newest_complete(runs_of([line for line in lines(0.1) if line["seed"] == 0]))
    assert "one seed makes no band" in compared(FAMILY, runs, Comparison("tempflow", "flow_grpo"), clock="seconds")


def test_table_has_a_row_a_method_and_lowest_and_highest_seed():
    page = write_table(FAMILY, newest_complete(runs_of(lines(0.1))), clock="seconds")
    row = next(line for line in page.splitlines() if line.startswith("| TempFlow-GRPO |"))
    assert "0.610 (0.600–0.620)" in row
    assert row.endswith("| 0, 1, 2 |")
    assert "| Flow-GRPO (global std) |" not in page
    assert "not both have been run" in page


def write(folder: Path, content: list[dict[str, object]]) -> None:
    (folder / "tiny-sd3.jsonl").write_text("".join(json.dumps(line) + "\n" for line in content))


def test_pictures_and_tables_of_what_is_there(tmp_path: Path):
    write(tmp_path, lines(0.1))
    written = draw_all(tmp_path)
    assert tmp_path / "tiny-sd3.md" in written
    pictures = [file for file in written if file.suffix == ".png"]
    assert pictures
    for file in pictures:
        with Image.open(file) as picture:
            assert picture.width == 1800
    assert draw_all(tmp_path / "empty") == []


def test_runs_of_different_clocks_are_not_equal(tmp_path: Path):
    mixed = lines(0.1)[:9] + lines(0.1, clock="cpu_seconds")[9:]
    write(tmp_path, mixed)
    with pytest.raises(ValueError, match="one --clock"):
        draw_all(tmp_path)


def flat(level: float) -> Band:
    return Band(np.array([0.0, 10.0]), *(np.full(2, level) for _ in range(3)), 1)


def test_higher_scores_lie_higher_in_their_own_colour():
    curves = [Named("high", flat(0.9)), Named("low", flat(0.6))]
    pixels = np.asarray(draw_panel(curves, size=(300, 200), x_label="x", y_label="y"))[:, 60:200].astype(int)
    rows = [
        np.flatnonzero((np.abs(pixels - ImageColor.getrgb(colour)).sum(-1) < 30).mean(1) > 0.5)
        for colour in COLOURS[:2]
    ]
    assert rows[0].size
    assert rows[1].size
    assert rows[0].max() < rows[1].min()


def test_more_curves_than_colours_are_refused():
    with pytest.raises(ValueError, match="8 curves"):
        draw_panel([Named(str(i), flat(0.1 * i)) for i in range(8)], size=(300, 200), x_label="x", y_label="y")


def test_names_are_moved_apart_in_order():
    moved = spread_out([5.0, 5.0, 0.0], step=2.0)
    assert moved == pytest.approx([4.333333, 6.333333, -0.666667])
    assert spread_out([0.0, 9.0], step=2.0) == [0.0, 9.0]
