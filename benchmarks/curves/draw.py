"""Pictures of the curves: held-out reward along five axes, and diversity; a line and a band a method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from benchmarks.curves.bands import Band, band, last_common
from benchmarks.curves.methods import FAMILIES, Family, Method
from benchmarks.curves.panel import SCALE, Named, draw_panel, text_font
from benchmarks.curves.rows import Run, newest_complete, read_lines, runs_of
from benchmarks.curves.table import write_table

AXES = {
    "seconds": "training seconds (wall clock)",
    "cpu_seconds": "training seconds (processor)",
    "update": "optimiser updates",
    "forwards": "denoiser forwards of sampling",
    "reward_calls": "reward calls",
}
FIGURES = {"heldout": "held-out reward", "diversity": "distance between the samples of a prompt"}
_PLACES = 121
_PANEL, _COLUMNS, _TITLE = (600, 380), 3, 34  # pixels


def draw_all(folder: Path) -> list[Path]:
    """The pictures and the table of every pipeline that has complete runs; returns the files written."""
    written: list[Path] = []
    for family in FAMILIES.values():
        runs = newest_complete(runs_of(read_lines(folder / f"{family.pipeline}.jsonl")))
        if not runs:
            continue
        for name, methods in family.pictures.items():
            shown = [method for method in methods if method in runs]
            if shown:
                file = folder / f"{family.pipeline}_{name}.png"
                draw(family, runs, shown).save(file, optimize=True)
                written.append(file)
        file = folder / f"{family.pipeline}.md"
        file.write_text(write_table(family, runs, clock=_clock(runs)), encoding="utf-8")
        written.append(file)
    return written


def draw(family: Family, runs: Mapping[str, Mapping[int, Run]], methods: Sequence[str]) -> Image.Image:
    """One picture: a panel an axis, and diversity along the first."""
    panels = [(axis, "heldout") for axis in AXES] + [("seconds", "diversity")]
    rows = -(-len(panels) // _COLUMNS)
    picture = Image.new("RGB", (_COLUMNS * _PANEL[0], rows * _PANEL[1] + _TITLE), "white")
    for place, (axis, figure) in enumerate(panels):
        curves = [
            Named(_written(family.method(name)), _whole(list(runs[name].values()), axis, figure)) for name in methods
        ]
        panel = draw_panel(curves, size=_PANEL, x_label=AXES[axis], y_label=FIGURES[figure])
        row, column = divmod(place, _COLUMNS)
        picture.paste(panel, (column * _PANEL[0], _TITLE + row * _PANEL[1]))
    picture.paste(_title(_heading(family, runs, methods), picture.width), (0, 0))
    return picture


def _heading(family: Family, runs: Mapping[str, Mapping[int, Run]], methods: Sequence[str]) -> str:
    counts = sorted({len(runs[name]) for name in methods})
    many = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"{family.pipeline}. Lines: mean over {many} seed(s); bands: lowest to highest seed."


def _title(text: str, width: int) -> Image.Image:
    strip = Image.new("RGB", (width * SCALE, _TITLE * SCALE), "white")
    ImageDraw.Draw(strip).text((8 * SCALE, _TITLE * SCALE / 2), text, fill="black", font=text_font(15), anchor="lm")
    return strip.resize((width, _TITLE), Image.Resampling.LANCZOS)


def _written(method: Method) -> str:
    """The label of a method in a picture: the font that Pillow brings along has no superscripts."""
    return method.label.replace("²", "2")


def _whole(runs: Sequence[Run], axis: str, figure: str) -> Band:
    return band(runs, axis=axis, figure=figure, x=np.linspace(0.0, last_common(runs, axis), _PLACES))


def _clock(runs: Mapping[str, Mapping[int, Run]]) -> str:
    """What the budgets of all runs are counted in.

    Raises:
        ValueError: if that differs, so that nothing is equal.
    """
    clocks = {run.rows[0]["run"]["clock"] for seeds in runs.values() for run in seeds.values()}
    if len(clocks) > 1:
        raise ValueError(f"runs are counted in {sorted(clocks)}; make all of them with one --clock")
    return clocks.pop()
