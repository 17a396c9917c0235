"""One panel of a picture: lines with bands on two axes, each line named at its end.

Pillow draws it three times as large as it is shown, which smooths the lines. Axes and their ticks are those of the
package's report.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from benchmarks.curves.bands import Band
from difalign.report.chart import Axis, nice_step, percent, tick_label, value_axis

SCALE = 3  # drawn so many times as large as shown
# Okabe and Ito's palette, which every common colour blindness tells apart; yellow is left out, too pale for a line.
COLOURS = ("#000000", "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9")
_INK, _FAINT, _RULE = "#222222", "#666666", "#e2e2e2"
_LEFT, _TOP, _BOTTOM = 52, 12, 46  # pixels around the box
_NAME_GAP = 18  # pixels from the box to the names on its right
_TEXT, _LINE, _NAME_STEP = 12, 2, 16  # pixels
_BAND = 38  # of 255, how dark a band is
_TICKS = 5


@dataclass(frozen=True, slots=True)
class Named:
    """A band with its name."""

    name: str
    band: Band


@dataclass(frozen=True, slots=True)
class _Box:
    """The drawing area in drawn pixels, and what its edges mean."""

    left: float
    top: float
    right: float
    bottom: float
    x_end: float
    y: Axis

    def across(self, value: float) -> float:
        return self.left + (self.right - self.left) * value / self.x_end

    def down(self, value: float) -> float:
        return self.bottom - (self.bottom - self.top) * percent(value, self.y) / 100.0


def draw_panel(curves: Sequence[Named], *, size: tuple[int, int], x_label: str, y_label: str) -> Image.Image:
    """A panel of ``size`` pixels; x begins at 0, y where the bands do.

    Raises:
        ValueError: if there are more curves than colours.
    """
    if len(curves) > len(COLOURS):
        raise ValueError(f"{len(curves)} curves in one panel; spread them over pictures of at most {len(COLOURS)}")
    width, height = (SCALE * side for side in size)
    image = Image.new("RGB", (width, height), "white")
    room = max(text_font().getlength(curve.name) for curve in curves) + (_NAME_GAP + 8) * SCALE
    ends = np.concatenate([np.concatenate([curve.band.low, curve.band.high]) for curve in curves])
    box = _Box(
        left=_LEFT * SCALE,
        top=(_TOP + _TEXT + 8) * SCALE,
        right=width - room,
        bottom=height - _BOTTOM * SCALE,
        x_end=max(float(curve.band.x[-1]) for curve in curves),
        y=value_axis(ends),
    )
    _draw_axes(ImageDraw.Draw(image), box, x_label, y_label)
    for curve, colour in zip(curves, COLOURS, strict=False):
        image = _shade(image, box, curve.band, colour)
    draw = ImageDraw.Draw(image)
    for curve, colour in zip(curves, COLOURS, strict=False):
        points = [(box.across(x), box.down(y)) for x, y in zip(curve.band.x, curve.band.mean, strict=True)]
        draw.line(points, fill=colour, width=_LINE * SCALE, joint="curve")
    _draw_names(draw, box, curves)
    return image.resize(size, Image.Resampling.LANCZOS)


def spread_out(heights: Sequence[float], *, step: float) -> list[float]:
    """The same heights moved apart until neighbours are ``step`` away; their order and their middle stay."""
    order = sorted(range(len(heights)), key=lambda index: heights[index])
    placed: list[float] = []
    for index in order:
        placed.append(max(heights[index], placed[-1] + step) if placed else heights[index])
    shift = (sum(heights) - sum(placed)) / len(heights)
    moved = [0.0] * len(heights)
    for index, height in zip(order, placed, strict=True):
        moved[index] = height + shift
    return moved


def text_font(size: int = _TEXT) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The font that comes with Pillow, in drawn pixels."""
    return ImageFont.load_default(size=size * SCALE)


def _draw_axes(draw: ImageDraw.ImageDraw, box: _Box, x_label: str, y_label: str) -> None:
    font = text_font()
    for tick in box.y.ticks:
        level = box.bottom - (box.bottom - box.top) * tick.percent / 100.0
        draw.line([(box.left, level), (box.right, level)], fill=_RULE, width=SCALE)
        draw.text((box.left - 6 * SCALE, level), tick.label, fill=_FAINT, font=font, anchor="rm")
    draw.line([(box.left, box.bottom), (box.right, box.bottom)], fill=_FAINT, width=SCALE)
    step = nice_step(box.x_end / _TICKS)
    for index in range(int(box.x_end / step + 1e-9) + 1):
        place = box.across(index * step)
        draw.line([(place, box.bottom), (place, box.bottom + 4 * SCALE)], fill=_FAINT, width=SCALE)
        label = tick_label(index * step, step, box.x_end)
        draw.text((place, box.bottom + 7 * SCALE), label, fill=_FAINT, font=font, anchor="mt")
    middle = (box.left + box.right) / 2
    draw.text((middle, box.bottom + 26 * SCALE), x_label, fill=_INK, font=font, anchor="mt")
    draw.text((8 * SCALE, _TOP * SCALE), y_label, fill=_INK, font=font, anchor="lm")


def _shade(image: Image.Image, box: _Box, band: Band, colour: str) -> Image.Image:
    mask = Image.new("L", image.size, 0)
    upper = [(box.across(x), box.down(y)) for x, y in zip(band.x, band.high, strict=True)]
    lower = [(box.across(x), box.down(y)) for x, y in zip(band.x, band.low, strict=True)]
    ImageDraw.Draw(mask).polygon([*upper, *reversed(lower)], fill=_BAND)
    return Image.composite(Image.new("RGB", image.size, colour), image, mask)


def _draw_names(draw: ImageDraw.ImageDraw, box: _Box, curves: Sequence[Named]) -> None:
    heights = spread_out([box.down(float(curve.band.mean[-1])) for curve in curves], step=_NAME_STEP * SCALE)
    for curve, colour, height in zip(curves, COLOURS, heights, strict=False):
        end = (box.across(float(curve.band.x[-1])), box.down(float(curve.band.mean[-1])))
        begin = (box.right + _NAME_GAP * SCALE, height)
        draw.line([end, (begin[0] - 4 * SCALE, height)], fill=colour, width=1)
        draw.text(begin, curve.name, fill=colour, font=text_font(), anchor="lm")
