"""Scores of pictures as a table in a file: CSV, JSON lines or Parquet, as its suffix says."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from difalign.report.log import write_bytes_atomically


@dataclass(frozen=True, slots=True)
class ScoredPicture:
    """One picture with every score; a score that could not be had is NaN, and ``errors`` says why."""

    image: str
    prompt: str
    scores: Mapping[str, float]  # reward, or reward/component
    errors: Mapping[str, str] = field(default_factory=dict)  # reward -> why


def check_table(path: Path) -> None:
    """Refuse a table that could not be written, before the work that would fill it.

    Raises:
        ValueError: if the suffix is none of the known, what it needs is not installed, or a folder is in its place.
    """
    if path.suffix.lower() not in _WRITERS:
        raise ValueError(f"{path}: is no table that can be written; end its name with {', '.join(_WRITERS)}")
    if path.is_dir():
        raise ValueError(f"{path}: is a folder; give the name of a file")
    if path.suffix.lower() == ".parquet":
        try:
            import pyarrow  # noqa: F401
        except ImportError:
            raise ValueError(
                f"{path}: needs pyarrow to be written; pip install difalign[parquet], or write .csv or .jsonl"
            ) from None


def write_table(path: Path, rows: Sequence[ScoredPicture]) -> None:
    """Write one row a picture: ``image``, ``prompt``, every score, and ``error`` where one is missing.

    What has no score is an empty cell, or null.

    Raises:
        ValueError: as ``check_table``.
    """
    check_table(path)
    names = list(dict.fromkeys(name for row in rows for name in row.scores))
    failed = any(row.errors for row in rows)
    table = [_entry(row, names, failed=failed) for row in rows]
    write_bytes_atomically(path, _WRITERS[path.suffix.lower()](table))


def _entry(row: ScoredPicture, names: Sequence[str], *, failed: bool) -> dict[str, object]:
    scores = {name: row.scores.get(name, math.nan) for name in names}
    entry: dict[str, object] = {"image": row.image, "prompt": row.prompt}
    entry |= {name: value if math.isfinite(value) else None for name, value in scores.items()}
    if failed:
        entry["error"] = "; ".join(f"{name}: {why}" for name, why in row.errors.items()) or None
    return entry


def _csv(table: Sequence[Mapping[str, object]]) -> bytes:
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, fieldnames=list(table[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return stream.getvalue().encode("utf-8")


def _json_lines(table: Sequence[Mapping[str, object]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in table).encode("utf-8")


def _parquet(table: Sequence[Mapping[str, object]]) -> bytes:
    import pyarrow
    from pyarrow import parquet

    texts = ("image", "prompt", "error")
    columns = {
        name: pyarrow.array([row[name] for row in table], pyarrow.string() if name in texts else pyarrow.float64())
        for name in table[0]
    }
    sink = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), sink)
    return sink.getvalue()


_WRITERS: Mapping[str, Callable[[Sequence[Mapping[str, object]]], bytes]] = {
    ".csv": _csv,
    ".jsonl": _json_lines,
    ".parquet": _parquet,
}
