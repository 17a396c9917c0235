"""Grids of samples with their prompts and scores, as PNG files that remember where each sample lies.

A grid carries its layout as PNG text, so that a page can cut the single samples out again, at their own
resolution. Small images are enlarged by whole factors without smoothing, so that pixels stay crisp.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Container, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from difalign.report.diagnostics import PromptTrees
from difalign.report.log import write_bytes_atomically
from difalign.report.records import SampleRecord
from difalign.report.words import finite, score

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont, ImageFont
    from torch import Tensor

    ImageBatch: TypeAlias = NDArray[np.generic] | Tensor
    Font: TypeAlias = FreeTypeFont | ImageFont

TILE_EDGE = 128  # pixels a small image is enlarged towards
MAX_TILE_EDGE = 256  # pixels a large image is reduced to
_METADATA_KEY = "difalign-grid"
_GUTTER = 14
_LINE_HEIGHT = 17
_FONT_SIZE = 13
_CAPTION_LINES = 3
_RANGE_TOLERANCE = 1e-3  # what rounding in half precision can add to [0, 1]
_PAIR_GAP = 8
_FRAME = 4  # pixels of a thick frame, outside the tile
_ACCENT = (214, 118, 8)
_PAPER, _INK, _FAINT, _LINE = (255, 255, 255), (24, 24, 27), (110, 110, 118), (205, 205, 210)


@dataclass(frozen=True, slots=True)
class TilePlace:
    """Where one sample lies in a grid, and by what whole factor it was enlarged."""

    prompt_index: int
    seed: int
    left: int
    top: int
    width: int
    height: int
    enlarged: int


@dataclass(frozen=True, slots=True)
class Grid:
    """A drawn grid and the place of every sample in it."""

    image: Image
    places: tuple[TilePlace, ...]


@dataclass(frozen=True, slots=True)
class Pair:
    """The same prompt and noise before and after training."""

    before: Image
    after: Image
    before_record: SampleRecord
    after_record: SampleRecord


def to_uint8(images: ImageBatch) -> NDArray[np.uint8]:
    """Pixels in [0, 1] as bytes, [N, C, H, W] -> [N, H, W, 3]; C is 1 or 3.

    Raises:
        ValueError: if the shape is another one, or a pixel is not finite or outside [0, 1].
    """
    array = images if isinstance(images, np.ndarray) else images.detach().float().cpu().numpy()
    if array.ndim != 4 or array.shape[1] not in (1, 3):
        raise ValueError(f"images of shape {array.shape}; a grid takes [N, C, H, W] with 1 or 3 channels")
    pixels = array.astype(np.float64)
    # Written so that NaN fails it too.
    if not bool(((pixels >= -_RANGE_TOLERANCE) & (pixels <= 1.0 + _RANGE_TOLERANCE)).all()):
        raise ValueError(
            f"pixels from {pixels.min()} to {pixels.max()}; a grid takes finite pixels in [0, 1]: clamp them first"
        )
    rgb = np.broadcast_to(pixels, (array.shape[0], 3, *array.shape[2:]))
    return np.rint(np.clip(rgb, 0.0, 1.0) * 255.0).astype(np.uint8).transpose(0, 2, 3, 1)


def fit_tile(image: Image) -> tuple[Image, int]:
    """The image at a size for a grid, and the whole factor it was enlarged by (1 if it was reduced or kept)."""
    from PIL.Image import Resampling

    edge = max(image.size)
    if edge > MAX_TILE_EDGE:
        ratio = MAX_TILE_EDGE / edge
        size = (max(1, round(image.width * ratio)), max(1, round(image.height * ratio)))
        return image.resize(size, Resampling.LANCZOS), 1
    factor = max(1, TILE_EDGE // edge)
    return image.resize((image.width * factor, image.height * factor), Resampling.NEAREST), factor


def labelled_grid(images: ImageBatch, records: Sequence[SampleRecord], *, columns: int | None = None) -> Grid:
    """One sample a cell, with its prompt and total score below.

    Args:
        images: [N, C, H, W] in [0, 1].
        records: what each image is, N of them.
        columns: cells a row; at most 6 by default.

    Raises:
        ValueError: if there is no image, or not one record an image.
    """
    from PIL import Image

    pixels = to_uint8(images)
    if len(pixels) != len(records) or not records:
        raise ValueError(f"{len(pixels)} images and {len(records)} records; give one record an image, at least one")
    fitted = [fit_tile(Image.fromarray(tile)) for tile in pixels]
    captions = [(record.prompt, _score_line(record)) for record in records]
    tiles = [[tile] for tile, _ in fitted]
    image, corners = _draw_cells(tiles, captions, columns=columns or min(6, len(records)))
    places = tuple(
        TilePlace(record.prompt_index, record.seed, left, top, tile.width, tile.height, factor)
        for record, (tile, factor), ((left, top),) in zip(records, fitted, corners, strict=True)
    )
    return Grid(image=image, places=places)


def leaf_grid(prompts: Sequence[PromptTrees], pictures: Sequence[ImageBatch]) -> Grid:
    """The leaves of the trees of some prompts; ``read_tiles`` finds each by (prompt's index, picture).

    Args:
        prompts: each with L leaves.
        pictures: for each prompt [L, C, H, W] in [0, 1]; all of one size.
    """
    records = [
        SampleRecord(prompt.prompt, "", leaf.picture, leaf.scores, prompt.index)
        for prompt in prompts
        for tree in prompt.trees
        for leaf in tree.leaves
    ]
    whole = np.concatenate([to_uint8(batch) for batch in pictures]).transpose(0, 3, 1, 2) / 255.0
    return labelled_grid(whole, records)


def before_after_grid(pairs: Sequence[Pair], *, columns: int | None = None) -> Image:
    """Two samples a cell, before on the left and after on the right; same prompt, same noise.

    Raises:
        ValueError: if there is no pair, or a pair is not of the same prompt and seed.
    """
    if not pairs:
        raise ValueError("no pairs to show; evaluate both models on at least one common prompt and seed")
    for pair in pairs:
        if pair.before_record.key != pair.after_record.key:
            raise ValueError(f"{pair.before_record.key} and {pair.after_record.key} differ; pair equal prompt and seed")
    tiles = [[fit_tile(pair.before)[0], fit_tile(pair.after)[0]] for pair in pairs]
    captions = [(pair.after_record.prompt, _change_line(pair)) for pair in pairs]
    image, _ = _draw_cells(tiles, captions, columns=columns or min(4, len(pairs)), titles=("before", "after"))
    return image


def captioned_grid(
    images: Sequence[Image], captions: Sequence[tuple[str, str]], *, columns: int = 4, framed: Container[int] = ()
) -> Image:
    """Pictures of any sizes in cells, each over its prompt and a line below it.

    Args:
        images: N of them.
        captions: (prompt, line below) of each.
        columns: cells a row, at most.
        framed: positions of those that get a thick frame.

    Raises:
        ValueError: if there is no picture, or not one caption a picture.
    """
    if not images or len(images) != len(captions):
        raise ValueError(f"{len(images)} pictures and {len(captions)} captions; give one a picture, at least one")
    tiles = [[fit_tile(image)[0]] for image in images]
    canvas, corners = _draw_cells(tiles, captions, columns=min(columns, len(images)))
    for position, ((tile,), ((left, top),)) in enumerate(zip(tiles, corners, strict=True)):
        if position in framed:
            _draw_frame(canvas, (left, top), tile)
    return canvas


def save_grid(grid: Grid, path: Path) -> None:
    """Save as PNG, whole or not at all, with the layout inside."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_itxt(_METADATA_KEY, json.dumps([asdict(place) for place in grid.places]), zip=True)
    buffer = io.BytesIO()
    grid.image.save(buffer, format="PNG", pnginfo=info)
    write_bytes_atomically(path, buffer.getvalue())


def read_tiles(path: Path) -> dict[tuple[int, int], Image]:
    """The samples of a saved grid at their own resolution, (prompt_index, seed) -> image.

    A PNG without a layout, drawn by something else, gives an empty mapping.

    Raises:
        ValueError: if the file is not a readable image or its layout is broken.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as opened:
            opened.load()
            grid = opened.convert("RGB")
            text = getattr(opened, "text", {}).get(_METADATA_KEY, "[]")
        places = [TilePlace(**place) for place in json.loads(str(text))]
    except (UnidentifiedImageError, OSError, TypeError, ValueError) as error:
        raise ValueError(f"{path.name} is not a readable grid: {error}") from error
    tiles = {}
    for place in places:
        tile = grid.crop((place.left, place.top, place.left + place.width, place.top + place.height))
        size = (place.width // place.enlarged, place.height // place.enlarged)
        tiles[(place.prompt_index, place.seed)] = tile.resize(size, Image.Resampling.NEAREST)
    return tiles


def wrap_caption(text: str, width: float, font: Font, *, lines: int = _CAPTION_LINES) -> list[str]:
    """Break text into at most ``lines`` lines no wider than ``width`` pixels; an ellipsis marks what was cut."""
    wrapped: list[str] = []
    current = ""
    for word in text.split():
        candidate = f"{current} {word}".strip()
        if not current or font.getlength(candidate) <= width:
            current = candidate
        else:
            wrapped.append(current)
            current = word
    wrapped.append(current)
    cut = len(wrapped) > lines
    wrapped = wrapped[:lines]
    last = len(wrapped) - 1
    return [
        _fit_line(line, width, font, ending="…" if cut and index == last else "") for index, line in enumerate(wrapped)
    ]


def _fit_line(line: str, width: float, font: Font, *, ending: str) -> str:
    """The line with its ending, shortened letter by letter if a single word is wider than the cell."""
    if font.getlength(line + ending) <= width:
        return line + ending
    kept = line
    while kept and font.getlength(kept + "…") > width:
        kept = kept[:-1]
    return kept + "…"


def _draw_cells(
    tiles: Sequence[Sequence[Image]],
    captions: Sequence[tuple[str, str]],
    *,
    columns: int,
    titles: Sequence[str] = (),
) -> tuple[Image, list[list[tuple[int, int]]]]:
    """Draw the cells of a grid, each a row of tiles over a caption; also the top left corner of every tile."""
    from PIL import Image, ImageDraw, ImageFont

    if columns < 1:
        raise ValueError(f"columns is {columns}; a grid needs at least 1")
    font = ImageFont.load_default(size=_FONT_SIZE)
    tile_width = max(tile.width for cell in tiles for tile in cell)
    tile_height = max(tile.height for cell in tiles for tile in cell)
    per_cell = len(tiles[0])
    cell_width = max(tile_width * per_cell + _PAIR_GAP * (per_cell - 1), TILE_EDGE)
    header = _LINE_HEIGHT if titles else 0
    wrapped = [(wrap_caption(prompt, cell_width, font), below) for prompt, below in captions]
    text_lines = max(len(lines) for lines, _ in wrapped) + 1
    cell_height = header + tile_height + 5 + text_lines * _LINE_HEIGHT
    rows = math.ceil(len(tiles) / columns)
    size = (columns * (cell_width + _GUTTER) + _GUTTER, rows * (cell_height + _GUTTER) + _GUTTER)
    canvas = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(canvas)
    corners: list[list[tuple[int, int]]] = []
    for index, cell in enumerate(tiles):
        left = _GUTTER + (index % columns) * (cell_width + _GUTTER)
        top = _GUTTER + (index // columns) * (cell_height + _GUTTER)
        corners.append([])
        for position, tile in enumerate(cell):
            corner = (left + position * (tile_width + _PAIR_GAP), top + header)
            # The frame lies outside the tile, so that cutting the tile out again gives the sample alone.
            draw.rectangle(
                (corner[0] - 1, corner[1] - 1, corner[0] + tile.width, corner[1] + tile.height), outline=_LINE
            )
            canvas.paste(tile, corner)
            corners[-1].append(corner)
            if titles:
                draw.text((corner[0], top - 2), titles[position], fill=_FAINT, font=font)
        _draw_caption(draw, (left, top + header + tile_height + 5), wrapped[index], font)
    return canvas, corners


def _draw_frame(canvas: Image, corner: tuple[int, int], tile: Image) -> None:
    from PIL import ImageDraw

    left, top = (edge - _FRAME for edge in corner)
    right, bottom = corner[0] + tile.width + _FRAME - 1, corner[1] + tile.height + _FRAME - 1
    ImageDraw.Draw(canvas).rectangle((left, top, right, bottom), outline=_ACCENT, width=_FRAME)


def _draw_caption(draw: ImageDraw, corner: tuple[int, int], caption: tuple[list[str], str], font: Font) -> None:
    lines, below = caption
    below = below.replace("−", "-")  # which the font that comes with PIL lacks
    left, top = corner
    for offset, line in enumerate(lines):
        draw.text((left, top + offset * _LINE_HEIGHT), line, fill=_INK, font=font)
    draw.text((left, top + len(lines) * _LINE_HEIGHT), below, fill=_FAINT, font=font)


def _score_line(record: SampleRecord) -> str:
    return score(record.scores.get("total"), digits=2) if "total" in record.scores else ""


def _change_line(pair: Pair) -> str:
    before, after = pair.before_record.scores.get("total"), pair.after_record.scores.get("total")
    if finite(before) is None and finite(after) is None:
        return ""
    return f"{score(before, digits=2)} to {score(after, digits=2)}"
