"""Pictures on the disk: which files are meant, whether each can be read, and their pixels."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from difalign.core.errors import ConfigError, in_one_message
from difalign.core.user_path import user_path

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
_SHOWN_PROBLEMS = 5
_GLOB = re.compile(r"[*?\[]")
_MANY_BITS = ("I", "F")  # modes of more than 8 bits begin so; their range is not known, so nothing can be scaled


@dataclass(frozen=True, slots=True)
class PictureFile:
    """A picture that can be read."""

    path: Path
    name: str  # its path below the folder that was named, without suffix; what pairs it with a prompt or a picture
    height: int  # pixels, as shown: after the turn that a camera has noted
    width: int
    mode: str  # PIL's word for its channels; what is not RGB is converted


def find_pictures(sources: Sequence[str], *, progress: Callable[[int, int], None] | None = None) -> list[PictureFile]:
    """The pictures of folders (with those below), patterns and single files, numbers in names in their order.

    Each file is decoded once, so that one which cannot be read is known before a model is loaded.

    Args:
        sources: folders, patterns such as ``run/*.png``, or files.
        progress: called with (files read, files in all).

    Raises:
        ConfigError: naming every source that is missing or empty, and every file that is no whole picture.
    """
    named = {path: name for source in sources for path, name in _files_of(source)}
    if not named:
        raise ConfigError("no picture is named; give a folder, a pattern or files")
    found: list[PictureFile] = []
    problems: list[str] = []
    for number, (path, name) in enumerate(named.items(), start=1):
        try:
            with _opened(path) as picture:
                found.append(PictureFile(path, name, picture.height, picture.width, picture.mode))
        except ValueError as error:
            problems.append(f"{path}: {error}")
        if progress is not None:
            progress(number, len(named))
    if problems:
        more = len(problems) - _SHOWN_PROBLEMS
        raise ConfigError(in_one_message(problems[:_SHOWN_PROBLEMS] + ([f"... and {more} more"] if more > 0 else [])))
    return found


def conversion_notice(pictures: Sequence[PictureFile]) -> str | None:
    """One sentence about the pictures that are not RGB; None if all are."""
    modes = Counter(picture.mode for picture in pictures if picture.mode != "RGB")
    if not modes:
        return None
    kinds = ", ".join(f"{count} {mode}" for mode, count in sorted(modes.items()))
    return f"{sum(modes.values())} of {len(pictures)} pictures are converted to RGB ({kinds}); transparency is dropped"


def read_pixels(picture: PictureFile) -> NDArray[np.uint8]:
    """RGB bytes, [H, W, 3].

    Raises:
        ConfigError: if the file has changed since it was found and can no longer be read.
    """
    import numpy as np

    return np.asarray(open_picture(picture.path))


def open_picture(path: str | Path) -> Image:
    """A picture in RGB.

    Raises:
        ConfigError: if it cannot be read.
    """
    try:
        with _opened(Path(path)) as opened:
            return opened.convert("RGB")
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from None


def natural(text: str) -> tuple[tuple[int, int, str], ...]:
    """A key that sorts ``10`` behind ``9``: digits as numbers, everything else as text."""
    return tuple((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", text) if part)


def _files_of(source: str) -> Iterator[tuple[Path, str]]:
    place = user_path(source)
    if place.is_dir():
        root, files = place, [path for path in place.rglob("*") if _is_picture(path)]
        if not files:
            raise ConfigError(f"{source}: holds no picture; pictures end with {', '.join(SUFFIXES)}")
    elif place.is_file():
        root, files = place.parent, [place]
    elif _GLOB.search(source):
        anchor = Path(place.anchor) if place.is_absolute() else Path()
        files = [path for path in anchor.glob(str(place.relative_to(anchor))) if path.is_file() and _is_picture(path)]
        if not files:
            raise ConfigError(f"{source}: no picture fits the pattern; pictures end with {', '.join(SUFFIXES)}")
        plain = [*takewhile(lambda part: not _GLOB.search(part), place.parts)]
        root = Path(*plain)
    else:
        raise ConfigError(f"{source}: no such file or folder; give a folder, a pattern such as 'out/*.png', or files")
    for path in sorted(files, key=lambda path: natural(path.as_posix())):
        below = path.relative_to(root) if path.is_relative_to(root) else Path(path.name)
        yield path, below.with_suffix("").as_posix()


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def _opened(path: Path) -> Image:
    """The whole picture, turned as it is shown; ValueError says why it cannot be read."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with path.open("rb") as stream, warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # large, but below what PIL refuses
            opened = Image.open(stream)
            opened.load()
    except UnidentifiedImageError:
        raise ValueError("is no picture that can be read; leave it out or save it again") from None
    except Image.DecompressionBombError as error:
        raise ValueError(f"is too large ({error})") from None
    except (OSError, SyntaxError, ValueError) as error:  # SyntaxError: what PIL says of a broken PNG
        reason = getattr(error, "strerror", None) or str(error)
        raise ValueError(f"cannot be read ({reason}); leave it out or save it again") from None
    if opened.mode.startswith(_MANY_BITS):
        raise ValueError(f"has more than 8 bits a channel (mode {opened.mode}); save it with 8")
    return ImageOps.exif_transpose(opened)
