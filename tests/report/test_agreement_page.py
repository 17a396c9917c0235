"""The table says every figure with its error; the chart draws each judge where its figures are."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from difalign.report.agreement_page import AgreementRow, Measure, Measured, agreement_table, save_agreement_chart

SPEARMAN = Measure("spearman", "Spearman")


def row(judge: str, sigma: float, mean: float, error: float = 0.01) -> AgreementRow:
    return AgreementRow(judge, sigma, 9, {"spearman": Measured(mean, error)})


ROWS = [row("teacher", 0.25, 0.9), row("teacher", 0.75, 0.4), row("student", 0.25, 0.9), row("student", 0.75, 0.6)]


def test_levels_go_from_noisy_to_clean():
    lines = agreement_table(
        [*ROWS, row("blind", 0.5, math.nan), row("new", 0.5, 0.1, math.nan)], [SPEARMAN]
    ).splitlines()
    assert lines[0] == "| σ | judge | Spearman |"
    assert lines[2:] == [
        "| 0.7500 | teacher | 0.400 ± 0.010 |",
        "| 0.7500 | student | 0.600 ± 0.010 |",
        "| 0.5000 | blind | – |",
        "| 0.5000 | new | 0.100 |",
        "| 0.2500 | teacher | 0.900 ± 0.010 |",
        "| 0.2500 | student | 0.900 ± 0.010 |",
    ]


def test_small_figures_have_more_digits():
    table = agreement_table([row("teacher", 0.5, 0.00042, 0.00011)], [Measure("spearman", "small", digits=5)])
    assert "| 0.00042 ± 0.00011 |" in table


def blue_rows(path: Path) -> np.ndarray:
    """The lines of pixels, above the legend, that hold a trace of the colour of the first judge."""
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)[:330]
    return np.flatnonzero((pixels[..., 2] - pixels[..., 0] > 60).any(axis=1))


def test_a_better_judge_is_drawn_higher(tmp_path: Path):
    heights = []
    for mean in (0.2, 0.8):
        path = tmp_path / "chart.png"
        fixed = [row("rest", 0.5, value, 0.0) for value in (0.0, 1.0)]
        save_agreement_chart(path, [row("first", 0.5, mean, 0.0), *fixed], [SPEARMAN], title="t")
        heights.append(blue_rows(path).mean())
    assert heights[0] - heights[1] == pytest.approx(0.6 * 260, abs=2)  # of a panel that goes from 0 to 1


def test_bars_are_as_long_as_their_error_and_missing_figures_are_left_out(tmp_path: Path):
    lengths = []
    for error in (0.01, 0.3):
        fixed = [row("rest", 0.5, value, 0.0) for value in (0.0, 1.0)]
        save_agreement_chart(tmp_path / "chart.png", [row("first", 0.5, 0.5, error), *fixed], [SPEARMAN], title="t")
        lengths.append(np.ptp(blue_rows(tmp_path / "chart.png")))
    assert lengths[1] > 10 * lengths[0] > 0
    rows = [row("first", 0.5, math.nan), row("rest", 0.5, 0.5, math.nan)]
    save_agreement_chart(tmp_path / "chart.png", rows, [SPEARMAN], title="t")
    assert blue_rows(tmp_path / "chart.png").size == 0


def test_a_panel_a_measure(tmp_path: Path):
    both = [AgreementRow("a", 0.5, 2, {"spearman": Measured(0.5, 0.1), "top": Measured(0.2, 0.1)})]
    for number, panels in ((1, [SPEARMAN]), (2, [SPEARMAN, Measure("top", "top-1 kept")])):
        save_agreement_chart(tmp_path / f"{number}.png", both, panels, title="t")
    with Image.open(tmp_path / "1.png") as one, Image.open(tmp_path / "2.png") as two:
        assert two.size == (2 * one.width, one.height)


@pytest.mark.parametrize(("rows", "panels"), [([], [SPEARMAN]), (ROWS, [])])
def test_nothing_to_draw(tmp_path: Path, rows: list, panels: list):
    with pytest.raises(ValueError, match="at least one"):
        save_agreement_chart(tmp_path / "chart.png", rows, panels, title="t")
