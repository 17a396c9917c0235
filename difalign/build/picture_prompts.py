"""Which prompt belongs to which picture: one text for all, a file with one a picture, or a text file beside each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from difalign.build.picture_files import PictureFile
from difalign.core.errors import ConfigError, in_one_message
from difalign.core.prompt_rows import Row, read_rows
from difalign.core.prompts import Prompt, prompt_of
from difalign.core.user_path import user_path

_FILES = (".txt", ".jsonl", ".csv", ".parquet", ".json", ".tsv", ".yaml", ".yml")
_IMAGE = "image"  # the column that names a picture
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class _Named:
    """A prompt, the picture it is for if its row says so, and where that stands."""

    prompt: Prompt
    image: str | None
    place: str


def match_prompts(pictures: Sequence[PictureFile], prompts: str) -> list[Prompt]:
    """One prompt a picture, in the order of the pictures.

    ``prompts`` is a folder with a text file for each picture, of the picture's name; or a file: ``.jsonl``, ``.csv``
    and ``.parquet`` with a column ``prompt``, and ``image`` to name the picture (without it, rows go by order), other
    columns becoming metadata, ``.txt`` with a prompt a line; or else the one prompt of all pictures.

    Raises:
        ConfigError: if the numbers differ, a picture has no prompt, a row names no picture, or a file is malformed.
    """
    place = user_path(prompts)
    if place.is_dir():
        return [_beside(place, picture) for picture in pictures]
    if place.is_file() or place.suffix.lower() in _FILES:
        return _of_file(pictures, place)
    if not prompts.strip():
        raise ConfigError(f"--prompts {prompts!r}: is empty; give a text, a file or a folder")
    return [prompt_of(Row("--prompts", {"prompt": prompts}))] * len(pictures)


def _beside(folder: Path, picture: PictureFile) -> Prompt:
    file = folder / f"{picture.name}.txt"
    if not file.is_file() and (folder / f"{Path(picture.name).name}.txt").is_file():
        file = folder / f"{Path(picture.name).name}.txt"
    if not file.is_file():
        raise ConfigError(f"{picture.path}: has no prompt; write it to {file}")
    try:
        # One prompt a file, which may run over several lines.
        return prompt_of(Row("", {"prompt": " ".join(file.read_text(encoding="utf-8-sig").split())}))
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise ConfigError(f"{file}: holds no prompt ({error})") from None


def _of_file(pictures: Sequence[PictureFile], file: Path) -> list[Prompt]:
    rows = list(_rows(file))
    named = [row for row in rows if row.image is not None]
    if named and len(named) < len(rows):
        missing = next(row for row in rows if row.image is None)
        raise ConfigError(f"{file}, {missing.place}: names no picture, as other rows do; add image, or leave it out")
    if named:
        return _by_name(pictures, named, file)
    if len(rows) != len(pictures):
        raise ConfigError(
            f"{file}: holds {len(rows)} prompts for {len(pictures)} pictures; write one a picture, in the order "
            f"{pictures[0].path.name}, ..., {pictures[-1].path.name}, or name each picture under 'image'"
        )
    return [row.prompt for row in rows]


def _rows(file: Path) -> list[_Named]:
    rows: list[_Named] = []
    problems: list[str] = []
    for row in read_rows(file):
        image = row.entry.get(_IMAGE)
        try:
            if image is not None and not isinstance(image, str):
                raise ValueError(f"image = {image!r}: must be the path of a picture")
            entry = {key: value for key, value in row.entry.items() if key != _IMAGE}
            rows.append(_Named(prompt_of(Row(row.place, entry, row.problem)), image, row.place))
        except ValueError as error:
            problems.append(f"{file}, {row.place}: {error}")
    if problems:
        more = len(problems) - _SHOWN
        raise ConfigError(in_one_message(problems[:_SHOWN] + ([f"... and {more} more"] if more > 0 else [])))
    if not rows:
        raise ConfigError(f"{file}: holds no prompt; write one a line")
    return rows


def _by_name(pictures: Sequence[PictureFile], rows: Sequence[_Named], file: Path) -> list[Prompt]:
    """By path (as it stands, or relative to the file), else by name below the folder, else by the bare name."""
    position: dict[str, int] = {}
    for index, picture in enumerate(pictures):
        for key in (str(picture.path.resolve()), picture.name, Path(picture.name).name):
            # A bare name that two folders hold means neither of them.
            position[key] = index if position.get(key, index) == index else -1
    found: dict[int, _Named] = {}
    problems: list[str] = []
    for row in rows:
        image = Path(str(row.image))
        keys = (str(image.resolve()), str((file.parent / image).resolve()), image.with_suffix("").as_posix())
        index = next((position[key] for key in (*keys, image.stem) if key in position), None)
        if index is None or index < 0:
            why = "is none of the pictures" if index is None else "is the name of several pictures; give its path"
            problems.append(f"{file}, {row.place}: image = {row.image!r}: {why}")
        elif index in found:
            problems.append(f"{file}, {row.place}: image = {row.image!r}: has a prompt already, {found[index].place}")
        else:
            found[index] = row
    problems += [f"{pictures[i].path}: has no row in {file}" for i in range(len(pictures)) if i not in found]
    if problems:
        more = len(problems) - _SHOWN
        raise ConfigError(in_one_message(problems[:_SHOWN] + ([f"... and {more} more"] if more > 0 else [])))
    return [found[index].prompt for index in range(len(pictures))]
