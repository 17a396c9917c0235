"""The pictures of a searched prompt: the winner, contact sheets of every look, and a grid of what became of whom."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from difalign.report import words
from difalign.report.images import MAX_TILE_EDGE, captioned_grid, fit_tile, wrap_caption
from difalign.report.log import write_bytes_atomically
from difalign.report.search_records import GRID_FILE, WINNER_FILE, LookRecord, ScoresRecord

if TYPE_CHECKING:
    from PIL.Image import Image

Pictures = NDArray[np.uint8]  # [A, H, W, 3], one a candidate of a look, in the order of its index
Saved = Literal["winner", "survivors", "all"]
SHEETS_FOLDER = "looks"
CANDIDATES_FOLDER = "candidates"
_COLUMNS, _LEAST_COLUMNS = 8, 4
_MARGIN, _TITLE_ROOM = 14, 28
_TITLE_SIZE, _TEXT_SIZE = 17, 14
_PAPER, _INK, _FAINT = (255, 255, 255), (24, 24, 27), (110, 110, 118)
_PLACEHOLDER = (228, 228, 224)


@dataclass(frozen=True, slots=True)
class Fate:
    """What became of some candidates: all that fell at one look, or all that were finished."""

    title: str
    look: LookRecord
    candidates: tuple[int, ...]  # the best first, by the scores of that look


def fates(scores: ScoresRecord) -> tuple[Fate, ...]:
    """Every candidate once, at the last look that saw it; those who came furthest first."""
    groups = [Fate("Finished", scores.finish, by_score(scores.finish, scores.finish.index))]
    went_on: set[int] = set(scores.finish.index)
    for number, look in reversed(list(enumerate(scores.looks, start=1))):
        fallen = [candidate for candidate in look.index if candidate not in went_on]
        went_on |= set(look.index)
        if fallen:
            title = f"Fell at stage {number}, sigma {look.sigma:.3g}"
            groups.append(Fate(title, look, by_score(look, fallen)))
    return tuple(groups)


def sheet_columns(tiles: int) -> int:
    """Tiles a row of a contact sheet: as square as it gets."""
    return math.ceil(math.sqrt(tiles))


def contact_sheet(pictures: Pictures) -> Image:
    """Tiles side by side without gaps, at their own size, large ones reduced; rows of ``sheet_columns``."""
    from PIL import Image

    tiles = [_reduced(Image.fromarray(picture)) for picture in pictures]
    width, height = tiles[0].size
    columns = sheet_columns(len(tiles))
    sheet = Image.new("RGB", (columns * width, math.ceil(len(tiles) / columns) * height), _PAPER)
    for position, tile in enumerate(tiles):
        sheet.paste(tile, (position % columns * width, position // columns * height))
    return sheet


def read_sheet(path: Path, tiles: int) -> list[Image]:
    """The tiles of a contact sheet, in order.

    Raises:
        ValueError: if it is no readable picture, or its size does not divide into that many tiles.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as opened:
            sheet = opened.convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{path.name} is not a readable picture: {error}") from error
    columns = sheet_columns(tiles)
    rows = math.ceil(tiles / columns)
    if sheet.width % columns or sheet.height % rows:
        raise ValueError(f"{path.name} of {sheet.width} x {sheet.height} does not hold {columns} x {rows} tiles")
    width, height = sheet.width // columns, sheet.height // rows
    corners = [(i % columns * width, i // columns * height) for i in range(tiles)]
    return [sheet.crop((left, top, left + width, top + height)) for left, top in corners]


def write_pictures(
    folder: Path, scores: ScoresRecord, looks: Sequence[Pictures | None], finish: Pictures, *, save: Saved = "winner"
) -> ScoresRecord:
    """Write every picture of a prompt into its folder; the scores that name them are returned, to be written last.

    Args:
        folder: of the prompt.
        scores: of the prompt, without file names.
        looks: the pictures of each look; None where none were kept.
        finish: the finished pictures.
        save: whose pictures are saved one by one, besides the winner's: nobody's, those of all who came to the end,
            or also the last preview of everyone else.

    Raises:
        ValueError: if there are not as many pictures as candidates.
    """
    seen: dict[int, tuple[LookRecord, NDArray[np.uint8]]] = {}  # candidate -> the last look at it, and its picture
    sheets = [None if pictures is None else f"{SHEETS_FOLDER}/look{i}.png" for i, pictures in enumerate(looks)]
    of_looks = [*zip(scores.looks, looks, sheets, strict=True), (scores.finish, finish, f"{SHEETS_FOLDER}/finish.png")]
    for look, pictures, sheet in of_looks:
        if pictures is not None and sheet is not None:
            if len(pictures) != len(look.index):
                raise ValueError(f"{len(pictures)} pictures of a look at {len(look.index)} candidates; give one each")
            write_bytes_atomically(folder / sheet, _png(contact_sheet(pictures)))
            seen |= {candidate: (look, picture) for candidate, picture in zip(look.index, pictures, strict=True)}
    names = {
        candidate: f"{CANDIDATES_FOLDER}/{candidate:04d}{'' if look.sigma is None else f'_step{look.step}'}.png"
        for candidate, (look, _) in sorted(seen.items())
        if save == "all" or (save == "survivors" and look.sigma is None)
    }
    files = {name: candidate for candidate, name in names.items()}
    if scores.winner is not None:
        files[WINNER_FILE] = scores.winner.index
    for name, candidate in files.items():
        look, picture = seen[candidate]
        write_bytes_atomically(folder / name, _png(_image(picture), scores, look, candidate))
    written = replace(
        scores,
        looks=tuple(replace(look, sheet=sheet) for look, sheet in zip(scores.looks, sheets, strict=True)),
        finish=replace(scores.finish, sheet=f"{SHEETS_FOLDER}/finish.png"),
        candidates=names,
    )
    grid = search_grid(written, {candidate: _image(picture) for candidate, (_, picture) in seen.items()})
    write_bytes_atomically(folder / GRID_FILE, _png(grid))
    return written


def search_grid(scores: ScoresRecord, pictures: Mapping[int, Image]) -> Image:
    """All candidates of a prompt: the winner framed, survivors in colour, the others grey at their last preview.

    Args:
        scores: of the prompt.
        pictures: candidate -> the last picture that there is of it; one without any gets an empty tile.
    """
    from PIL import Image

    size = next(iter(pictures.values())).size if pictures else (64, 64)
    empty = Image.new("RGB", size, _PLACEHOLDER)
    groups = fates(scores)
    columns = min(_COLUMNS, max(_LEAST_COLUMNS, *(len(group.candidates) for group in groups)))
    parts = []
    for group in groups:
        tiles = [pictures.get(candidate, empty) for candidate in group.candidates]
        if group.look.sigma is not None:
            tiles = [_greyed(tile) for tile in tiles]
        captions = [_caption(group.look, candidate) for candidate in group.candidates]
        winner = scores.winner and scores.winner.index
        framed = {position for position, candidate in enumerate(group.candidates) if candidate == winner}
        title = f"{group.title} ({len(group.candidates)})"
        parts.append((title, captioned_grid(tiles, captions, columns=columns, framed=framed)))
    return _stacked(_headings(scores), parts)


def by_score(look: LookRecord, candidates: Sequence[int]) -> tuple[int, ...]:
    """The candidates, the highest score of a look first; those without one last, equal ones by their number."""
    score = dict(zip(look.index, look.scores, strict=True))

    def key(candidate: int) -> tuple[bool, float, int]:
        value = score[candidate]
        return value is None, -(value or 0.0), candidate

    return tuple(sorted(candidates, key=key))


def _caption(look: LookRecord, candidate: int) -> tuple[str, str]:
    """A score where it is that of a finished picture; on the way a rank, which cannot be taken for one."""
    name, score = f"no. {candidate}", look.score_of(candidate)
    if score is None:
        return name, "no score"
    if look.sigma is None:
        return name, words.score(score)
    return name, f"rank {by_score(look, look.index).index(candidate) + 1} of {len(look.index)}"


def _headings(scores: ScoresRecord) -> tuple[str, str]:
    winner = scores.winner
    if winner is None:
        return scores.prompt, "no winner: no finished sample has a score"
    return scores.prompt, f"winner: no. {winner.index}, score {words.score(winner.score)}, seed {winner.seed}"


def _stacked(headings: tuple[str, str], parts: Sequence[tuple[str, Image]]) -> Image:
    """The headings over the parts, each under its title."""
    from PIL import Image, ImageDraw, ImageFont

    large, small = (ImageFont.load_default(size=size) for size in (_TITLE_SIZE, _TEXT_SIZE))
    width = max(part.width for _, part in parts)
    prompt = wrap_caption(headings[0], width - 2 * _MARGIN, large)
    head = _MARGIN + len(prompt) * (_TITLE_SIZE + 5) + _TEXT_SIZE + 8
    height = head + sum(_TITLE_ROOM + part.height for _, part in parts)
    canvas = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(canvas)
    for row, line in enumerate(prompt):
        draw.text((_MARGIN, _MARGIN + row * (_TITLE_SIZE + 5)), line, fill=_INK, font=large)
    draw.text((_MARGIN, head - _TEXT_SIZE - 6), headings[1], fill=_FAINT, font=small)
    top = head
    for title, part in parts:
        draw.text((_MARGIN, top + _TITLE_ROOM - _TEXT_SIZE - 4), title, fill=_INK, font=small)
        canvas.paste(part, (0, top + _TITLE_ROOM))
        top += _TITLE_ROOM + part.height
    return canvas


def _greyed(image: Image) -> Image:
    from PIL import Image

    grey = image.convert("L").convert("RGB")
    return Image.blend(grey, Image.new("RGB", grey.size, _PAPER), 0.45)


def _image(picture: NDArray[np.uint8]) -> Image:
    from PIL import Image

    return Image.fromarray(picture)


def _reduced(image: Image) -> Image:
    return fit_tile(image)[0] if max(image.size) > MAX_TILE_EDGE else image


def _png(
    image: Image, scores: ScoresRecord | None = None, look: LookRecord | None = None, candidate: int | None = None
) -> bytes:
    """As PNG, which says what it is where it is one candidate."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    if scores is not None and look is not None and candidate is not None:
        score = look.score_of(candidate)
        said = {
            "prompt": scores.prompt,
            "index": candidate,
            "seed": scores.seeds[candidate],
            "score": score,
            "sigma": look.sigma,
        }
        for key, value in said.items():
            if value is not None:
                info.add_itxt(key, str(value))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", pnginfo=info)
    return buffer.getvalue()
