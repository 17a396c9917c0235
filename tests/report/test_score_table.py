"""Tables of scores say the same in every format."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest
from pyarrow import parquet

from difalign.report.score_table import ScoredPicture, check_table, write_table

ROWS = (
    ScoredPicture("a.png", 'two "red", big', {"verifier": 0.1, "verifier/strict": 1.0}),
    ScoredPicture("b.png", "ü", {"verifier": math.nan, "verifier/strict": math.nan}, {"verifier": "server down"}),
)


def parsed(name: str, cell: str) -> object:
    if cell == "":
        return None
    return float(cell) if name.startswith("verifier") else cell


def read(path: Path) -> list[dict[str, object]]:
    if path.suffix == ".parquet":
        return parquet.read_table(path).to_pylist()
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    with path.open(newline="") as stream:
        rows = [dict(row) for row in csv.DictReader(stream)]
    return [
        {k: None if v == "" else float(v) if k.startswith("verifier") else v for k, v in row.items()} for row in rows
    ]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_what_is_written_is_read_back(tmp_path: Path, suffix: str):
    path = tmp_path / "sub" / f"scores{suffix}"
    write_table(path, ROWS)
    assert read(path) == [
        {"image": "a.png", "prompt": 'two "red", big', "verifier": 0.1, "verifier/strict": 1.0, "error": None},
        {"image": "b.png", "prompt": "ü", "verifier": None, "verifier/strict": None, "error": "verifier: server down"},
    ]


def test_no_column_for_errors_without_any(tmp_path: Path):
    write_table(tmp_path / "s.csv", ROWS[:1])
    assert (tmp_path / "s.csv").read_text().splitlines()[0] == "image,prompt,verifier,verifier/strict"


def test_tables_that_cannot_be(tmp_path: Path):
    with pytest.raises(ValueError, match=r"end its name with \.csv, \.jsonl, \.parquet"):
        check_table(tmp_path / "scores.xlsx")
    (tmp_path / "x.csv").mkdir()
    with pytest.raises(ValueError, match="is a folder"):
        check_table(tmp_path / "x.csv")
