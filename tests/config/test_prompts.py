"""Prompt files are read in order; every fault is named with its line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from difalign.core.errors import ConfigError
from difalign.core.prompts import Prompt, read_prompts


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_text(tmp_path: Path):
    file = write(tmp_path / "p.txt", "\ufeff# heading\n\n  a cat \r\na #1 dog\n")
    assert read_prompts(file) == (Prompt("a cat"), Prompt("a #1 dog"))


def test_json_lines(tmp_path: Path):
    lines = [
        '{"prompt": "a cat", "kind": "single", "metadata": {"count": 1}}',
        '{"tag": "two_object", "prompt": "a cat and a dog", "include": ["cat", "dog"]}',
        '{"prompt": "# not a comment"}',
    ]
    assert read_prompts(write(tmp_path / "p.jsonl", "\n".join(lines))) == (
        Prompt("a cat", "single", {"count": 1}),
        Prompt("a cat and a dog", "two_object", {"tag": "two_object", "include": ["cat", "dog"]}),
        Prompt("# not a comment"),
    )


def test_csv(tmp_path: Path):
    lines = ["prompt,kind,count", '"a cat, and a dog",two,2', "", "  a fox  ,,", '"a ""big""\nhen",one,1']
    assert read_prompts(write(tmp_path / "P.CSV", "\ufeff" + "\r\n".join(lines))) == (
        Prompt("a cat, and a dog", "two", {"count": "2"}),
        Prompt("a fox"),
        Prompt('a "big"\nhen', "one", {"count": "1"}),
    )


def test_parquet(tmp_path: Path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    columns = {"prompt": ["a cat", " a dog "], "tag": ["one", None], "count": [1, None], "boxes": [[1, 2], None]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "p.parquet")
    assert read_prompts(tmp_path / "p.parquet") == (
        Prompt("a cat", "one", {"tag": "one", "count": 1, "boxes": [1, 2]}),
        Prompt("a dog"),
    )


def test_parquet_without_pyarrow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)  # as the import system remembers what is not there
    with pytest.raises(ConfigError, match=r"needs pyarrow .*pip install difalign\[parquet\].*\.jsonl or \.csv"):
        read_prompts(write(tmp_path / "p.parquet", "x"))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("p.txt", "", "holds no prompt"),
        ("p.txt", "a\nb\n\nb\na\n", r"line 4: repeats line 2 \('b'\)"),
        ("p.txt", b"a\nb\xff\n", "line 2: is not UTF-8"),
        ("p.txt", "a\n" + "b" * 10_001, "line 2: has 10001 characters"),
        ("p.txt", "a\x07\n", "line 1: holds control characters"),
        ("p.jsonl", '{"prompt": "a"}\n[1]', "line 2: must be an object"),
        ("p.jsonl", '{"prompt": " "}', "line 1: must be an object"),
        ("p.jsonl", '{"prompt": 3}', "line 1: must be an object"),
        ("p.jsonl", '{"prompt": "a", "kind": 3}', "line 1: kind = 3: must be text"),
        ("p.jsonl", '{"prompt": "a", "metadata": 3}', "line 1: metadata = 3: must be an object"),
        ("p.jsonl", "a cat", "line 1: is not JSON"),
    ],
)
def test_faults(tmp_path: Path, name: str, content: str | bytes, said: str):
    with pytest.raises(ConfigError, match=said):
        read_prompts(write(tmp_path / name, content))


def test_many_faults_are_counted(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"line 1:[^$]*line 3:[^$]*and 2 more") as error:
        read_prompts(write(tmp_path / "p.jsonl", "x\n" * 5))
    assert "line 4" not in str(error.value)


def test_folder_and_missing_file(tmp_path: Path):
    with pytest.raises(ConfigError, match="cannot be read"):
        read_prompts(tmp_path)
    with pytest.raises(ConfigError, match="no such file"):
        read_prompts(tmp_path / "none.txt")
