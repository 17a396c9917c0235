"""How scores of unfinished samples agree with those of the finished ones: a table to read and a chart to look at."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from difalign.report.chart import Axis, percent, value_axis
from difalign.report.log import write_bytes_atomically
from difalign.report.words import MISSING, score

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw

_SCALE = 2  # drawn so many times larger, for smooth lines
_PANEL, _MARGIN, _LEGEND = (420, 260), (56, 34), 20
_DODGE = 3.0  # pixels between judges at one level, so that none hides another
_COLOURS = ((37, 99, 235), (217, 119, 6), (5, 150, 105), (190, 24, 93), (109, 40, 217), (8, 145, 178), (120, 113, 108))
_INK, _FAINT, _LINE, _PAPER = (24, 24, 27), (110, 110, 118), (225, 225, 229), (255, 255, 255)


@dataclass(frozen=True, slots=True)
class Measured:
    """A mean over prompts with its standard error; NaN where no prompt has the measure."""

    mean: float
    standard_error: float


@dataclass(frozen=True, slots=True)
class AgreementRow:
    """One judge at one level."""

    judge: str
    sigma: float
    prompts: int
    measures: Mapping[str, Measured]


@dataclass(frozen=True, slots=True)
class Measure:
    """A column of the table."""

    key: str
    title: str
    digits: int = 3  # after the point


def agreement_table(rows: Sequence[AgreementRow], measures: Sequence[Measure]) -> str:
    """The rows as a Markdown table, levels from noisy to clean, each figure with its standard error."""
    lines = [
        f"| σ | judge | {' | '.join(measure.title for measure in measures)} |",
        f"|---|---|{'---|' * len(measures)}",
    ]
    for row in sorted(rows, key=lambda row: -row.sigma):
        figures = " | ".join(_figure(row.measures[measure.key], measure.digits) for measure in measures)
        lines.append(f"| {row.sigma:.4f} | {row.judge} | {figures} |")
    return "\n".join(lines) + "\n"


def _figure(value: Measured, digits: int) -> str:
    if math.isnan(value.mean):
        return MISSING
    error = "" if math.isnan(value.standard_error) else f" ± {score(value.standard_error, digits=digits)}"
    return f"{score(value.mean, digits=digits)}{error}"


def save_agreement_chart(path: Path, rows: Sequence[AgreementRow], panels: Sequence[Measure], *, title: str) -> None:
    """One panel a measure, a line a judge over sigma with a bar of one standard error to both sides; as PNG.

    Raises:
        ValueError: if there is no row or no panel.
    """
    from PIL import Image, ImageDraw
    from PIL.Image import Resampling

    if not rows or not panels:
        raise ValueError("a chart needs at least one row and one panel")
    judges = list(dict.fromkeys(row.judge for row in rows))
    width = len(panels) * (_PANEL[0] + 2 * _MARGIN[0])
    height = _PANEL[1] + 3 * _MARGIN[1] + _LEGEND * (len(judges) + 1)
    canvas = Image.new("RGB", (width * _SCALE, height * _SCALE), _PAPER)
    draw = ImageDraw.Draw(canvas)
    _text(draw, (_MARGIN[0], 8), title, _INK)
    for number, panel in enumerate(panels):
        left = number * (_PANEL[0] + 2 * _MARGIN[0]) + _MARGIN[0]
        _draw_panel(draw, (left, 2 * _MARGIN[1]), rows, judges, panel)
    top = _PANEL[1] + 3 * _MARGIN[1] + 8
    for number, judge in enumerate(judges):
        at = top + number * _LEGEND
        _line(draw, [(_MARGIN[0], at + 8), (_MARGIN[0] + 24, at + 8)], _COLOURS[number % len(_COLOURS)], 2.5)
        _text(draw, (_MARGIN[0] + 32, at), judge, _INK)
    buffer = io.BytesIO()
    canvas.resize((width, height), Resampling.LANCZOS).save(buffer, format="PNG")
    write_bytes_atomically(path, buffer.getvalue())


def _draw_panel(
    draw: ImageDraw, corner: tuple[int, int], rows: Sequence[AgreementRow], judges: Sequence[str], panel: Measure
) -> None:
    drawable = [row for row in rows if not math.isnan(row.measures[panel.key].mean)]
    found = [row.measures[panel.key] for row in drawable]
    reach = [(m.mean, 0.0 if math.isnan(m.standard_error) else m.standard_error) for m in found] or [(0.0, 0.0)]
    y_axis = value_axis(np.array([mean + side * error for mean, error in reach for side in (-1, 1)]))
    x_axis = Axis(0.0, max([1.0, *(row.sigma for row in rows)]), False, ())
    (left, top), (across, down) = corner, _PANEL

    def place(sigma: float, value: float) -> tuple[float, float]:
        return left + across * percent(sigma, x_axis) / 100, top + down * (1 - percent(value, y_axis) / 100)

    _text(draw, (left, top - 22), panel.title, _INK)
    for tick in y_axis.ticks:
        height = top + down * (1 - tick.percent / 100)
        _line(draw, [(left, height), (left + across, height)], _LINE, 1)
        _text(draw, (left - 44, height - 8), tick.label.replace("−", "-"), _FAINT)
    for sigma in sorted({row.sigma for row in rows}):
        _text(draw, (place(sigma, y_axis.low)[0] - 12, top + down + 6), f"{sigma:.2f}", _FAINT)
    _text(draw, (left + across + 6, top + down + 6), "sigma", _FAINT)
    for number, judge in enumerate(judges):
        colour = _COLOURS[number % len(_COLOURS)]
        own = sorted((row for row in drawable if row.judge == judge), key=lambda row: row.sigma)
        aside = _DODGE * (number - (len(judges) - 1) / 2)
        marks = [(row.measures[panel.key], place(row.sigma, row.measures[panel.key].mean)) for row in own]
        _line(draw, [(x + aside, y) for _, (x, y) in marks], colour, 2)
        for value, (x, y) in marks:
            error = 0.0 if math.isnan(value.standard_error) else value.standard_error
            bar = abs(place(0.0, value.mean + error)[1] - y)
            _line(draw, [(x + aside, y - bar), (x + aside, y + bar)], colour, 1.2)
            draw.ellipse([v * _SCALE for v in (x + aside - 3, y - 3, x + aside + 3, y + 3)], fill=colour)


def _line(draw: ImageDraw, points: Sequence[tuple[float, float]], colour: tuple[int, int, int], width: float) -> None:
    if len(points) > 1:
        scaled = [(x * _SCALE, y * _SCALE) for x, y in points]
        draw.line(scaled, fill=colour, width=round(width * _SCALE), joint="curve")


def _text(draw: ImageDraw, corner: tuple[float, float], text: str, colour: tuple[int, int, int]) -> None:
    from PIL import ImageFont

    font = ImageFont.load_default(size=13 * _SCALE)
    draw.text((corner[0] * _SCALE, corner[1] * _SCALE), text.replace("τ", "tau"), fill=colour, font=font)
