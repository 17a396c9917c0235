"""The rows of a prompt file, whatever its format: what a row says, where it stands, and what is wrong with it."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from difalign.core.config_errors import nearest
from difalign.core.errors import ConfigError

_PROMPT = "prompt"  # the column, or key, that every row needs
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# Structured files that would read as nonsense line by line.
_UNREAD = (".json", ".tsv", ".yaml", ".yml", ".toml", ".xlsx", ".xls", ".arrow", ".feather", ".gz", ".zip", ".zst")


@dataclass(frozen=True, slots=True)
class Row:
    """What one row says, or why it says nothing."""

    place: str  # "line 3", "row 3"
    entry: Mapping[str, object] = field(default_factory=dict)
    problem: str | None = None


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a file in its order, read as its suffix says; blank ones are left out.

    Raises:
        ConfigError: if the file cannot be read, or not as what its suffix says; what concerns one row is in the row.
    """
    suffix = path.suffix.lower()
    if suffix in _UNREAD:
        raise ConfigError(f"{path}: {suffix} files are not read; give a .txt, .jsonl, .csv or .parquet file")
    return _READERS.get(suffix, _text_rows)(path)


def _text_rows(path: Path) -> Iterator[Row]:
    for number, line in _numbered_lines(path):
        if line.startswith("#"):
            continue
        place = f"line {number}"
        if line.isprintable():
            yield Row(place, {_PROMPT: line})
        else:
            yield Row(place, problem="holds control characters, so it is no prompt; write one prompt a line")


def _json_rows(path: Path) -> Iterator[Row]:
    for number, line in _numbered_lines(path):
        place = f"line {number}"
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:  # not JSON, a number of thousands of digits, too deeply nested
            where = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else error
            yield Row(place, problem=f'is not JSON ({where}); write {{"prompt": "a red circle"}}')
            continue
        if isinstance(entry, dict) and isinstance(entry.get(_PROMPT), str) and entry[_PROMPT].strip():
            yield Row(place, entry)
        else:
            yield Row(place, problem='must be an object with the text "prompt"; write {"prompt": "a red circle"}')


def _csv_rows(path: Path) -> Iterator[Row]:
    """Rows under a header; ``line`` is where a row begins, since a quoted cell may run over several."""
    text = "\n".join(_lines(path))
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] | None = None
    begin = 1
    try:
        for cells in reader:
            place, begin = f"line {begin}", reader.line_num + 1
            if not any(cell.strip() for cell in cells):
                continue
            if header is None:
                header = [cell.strip() for cell in cells]
                _check_columns(path, header)
            elif len(cells) != len(header):
                yield Row(
                    place,
                    problem=f"has {len(cells)} cells, and the header {len(header)}; "
                    "put a prompt that holds a comma in double quotes",
                )
            else:
                yield Row(place, {name: cell for name, cell in zip(header, cells, strict=True) if cell.strip()})
    except csv.Error as error:
        raise ConfigError(f"{path}, line {begin}: is not CSV ({error}); see that every quote is closed") from None


def _parquet_rows(path: Path) -> Iterator[Row]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise ConfigError(
            f"{path}: needs pyarrow to be read; pip install difalign[parquet], or save the prompts as .jsonl or .csv"
        ) from None
    _read_bytes(path, only_first=True)  # the words for a missing file are the same in every format
    try:
        with parquet.ParquetFile(path) as file:
            _check_columns(path, file.schema_arrow.names)
            rows = [row for batch in file.iter_batches() for row in batch.to_pylist()]
    except (ArrowException, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"{path}: is not Parquet that can be read ({reason}); write the file again") from None
    for number, entry in enumerate(rows, start=1):
        yield Row(f"row {number}", {name: value for name, value in entry.items() if value is not None})


_READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _json_rows,
    ".csv": _csv_rows,
    ".parquet": _parquet_rows,
}


def _check_columns(path: Path, names: Sequence[str]) -> None:
    """Every column has a name of its own, and one is called prompt."""
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ConfigError(f"{path}: has two columns called {repeated[0]!r}; rename or remove one of them")
    if _PROMPT not in names:
        close = nearest(_PROMPT, names)
        hint = f"; is {close!r} meant? rename it" if close is not None else ""
        raise ConfigError(f"{path}: has no column 'prompt', only {', '.join(map(repr, names))}{hint}")


def _numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Line numbers from 1 and lines that hold something, without the space around them."""
    for number, line in enumerate(_lines(path), start=1):
        if line.strip():
            yield number, line.strip()


def _lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file, without its byte order mark."""
    for number, raw in enumerate(_read_bytes(path).removeprefix(_BYTE_ORDER_MARK).splitlines(), start=1):
        try:
            yield raw.decode("utf-8")
        except UnicodeDecodeError:
            raise ConfigError(f"{path}, line {number}: is not UTF-8 text; save the file as UTF-8") from None


def _read_bytes(path: Path, *, only_first: bool = False) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(1 if only_first else -1)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; give the path of a prompt file") from None
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{path}: cannot be read ({reason}); give the path of a prompt file") from None
