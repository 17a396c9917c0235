"""Prompt files of every format with every kind of defect."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.bad_input import Bad, Outcome, Prepare, assert_refused, meet, meet_alone, named, nothing_more

_ONE_IS_ENOUGH = ("sampling.prompts_per_update=1", "training.updates_per_rollout=1")


def prompts(name: str, file: str, content: str | bytes, *said: str) -> Bad:
    return Bad(name, ("train", f"prompts.train={file}", *_ONE_IS_ENOUGH), (file, *said), {file: content})


def table(name: str, columns: dict[str, list[object]], *said: str, prepare: Prepare = nothing_more) -> Bad:
    """A Parquet file of columns, and what is done to it afterwards."""

    def write(folder: Path) -> None:
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.table(columns), folder / "p.parquet")
        prepare(folder)

    arguments = ("train", "prompts.train=p.parquet", *_ONE_IS_ENOUGH)
    return Bad(name, arguments, ("p.parquet", *said), prepare=write)


def cut(folder: Path) -> None:
    file = folder / "p.parquet"
    file.write_bytes(file.read_bytes()[:-20])


ANY = [
    Bad("missing file", ("train", "prompts.train=no.txt"), ("prompts.train = 'no.txt'", "no such file")),
    Bad("missing held-out file", ("train", "prompts.heldout=no.csv"), ("prompts.heldout = 'no.csv'", "no such file")),
    Bad("missing table", ("train", "prompts.train=no.parquet"), ("prompts.train = 'no.parquet'", "no such file")),
    Bad("folder", ("train", "prompts.train=d"), ("prompts.train = 'd'", "cannot be read"), {"d/a.txt": "a red circle"}),
    Bad("home of nobody", ("train", "prompts.train=~nobody-here/p.txt"), ("~nobody-here/p.txt", "no such file")),
    prompts("JSON that is not lines", "p.json", '["a red circle"]', ".json files are not read", ".jsonl, .csv"),
    prompts("sheet", "p.xlsx", "x", ".xlsx files are not read", ".csv or .parquet"),
    Bad(
        "too few prompts",
        ("train", "prompts.train=p.txt"),
        ("holds 1 prompts, fewer than the 10 of a rollout", "add prompts, or use sampling.prompts_per_update=1"),
        {"p.txt": "a red circle\n"},
    ),
    Bad(
        "too few prompts for two updates",
        ("train", "prompts.train=p.txt", "sampling.prompts_per_update=1", "training.updates_per_rollout=2"),
        ("holds 1 prompts, fewer than the 2 of a rollout", "use training.updates_per_rollout=1"),
        {"p.txt": "a red circle\n"},
    ),
    prompts(
        "prompt beyond the reward", "p.txt", "a cat\n", "rewards.verifier cannot score 'a cat'", "say for instance"
    ),
]
TEXT = [
    prompts("empty text", "p.txt", "", "holds no prompt", "write one a line"),
    prompts("blank lines and comments", "p.txt", "\n  \n# nothing\n", "holds no prompt", "write one a line"),
    prompts("control characters", "p.txt", "a red circle\na\x00b\n", "p.txt, line 2", "control characters"),
    prompts(
        "repeated line", "p.txt", "a red circle\n\na red circle\n", "p.txt, line 3", "repeats line 1", "remove one"
    ),
    prompts(
        "text of another encoding", "p.txt", "a red circle\ncaf\xe9\n".encode("latin-1"), "line 2", "save the file as"
    ),
    prompts("UTF-16", "p.txt", "a red circle\n".encode("utf-16"), "p.txt, line 1: is not UTF-8 text"),
    prompts("line without an end", "p.txt", "a" * 10_001, "line 1: has 10001 characters", "write one prompt a line"),
    prompts("byte order mark alone", "p.txt", "\ufeff", "holds no prompt"),
]
JSON_LINES = [
    prompts("empty JSON lines", "p.jsonl", "", "holds no prompt"),
    prompts(
        "JSON cut off", "p.jsonl", '{"prompt": "a red circle"}\n{"prompt"', "p.jsonl, line 2", "is not JSON", "column"
    ),
    prompts("JSON after blank lines", "p.jsonl", "\n\nx\n", "p.jsonl, line 3: is not JSON"),
    prompts("JSON after a byte order mark", "p.jsonl", '\ufeff{"prompt": 3}', "p.jsonl, line 1: must be an object"),
    prompts("JSON without a prompt", "p.jsonl", '{"text": "a"}\n', "p.jsonl, line 1", 'the text "prompt"'),
    prompts(
        "JSON with a number", "p.jsonl", '{"prompt": 7}', "line 1: must be an object", '{"prompt": "a red circle"}'
    ),
    prompts("JSON with an empty prompt", "p.jsonl", '{"prompt": " "}', "line 1: must be an object"),
    prompts("JSON list", "p.jsonl", '["a red circle"]', "line 1: must be an object"),
    prompts("kind that is a number", "p.jsonl", '{"prompt": "a red circle", "kind": 3}', "kind = 3", "must be text"),
    prompts(
        "metadata in a word", "p.jsonl", '{"prompt": "a red circle", "metadata": "x"}', "metadata = 'x'", "an object"
    ),
    prompts("repeated object", "p.jsonl", '{"prompt": "a red circle"}\n' * 2, "line 2: repeats line 1"),
    prompts("number without an end", "p.jsonl", '{"prompt": "a", "n": ' + "9" * 5000 + "}", "line 1: is not JSON"),
    prompts("brackets without an end", "p.jsonl", "[" * 100_000, "line 1: is not JSON"),
    prompts("half a character", "p.jsonl", '{"prompt": "a \\ud800"}', "line 1: prompt = 'a \\ud800'", "correct it"),
    prompts("JSON of another encoding", "p.jsonl", '{"prompt": "caf\xe9"}'.encode("latin-1"), "line 1: is not UTF-8"),
    prompts("many defects", "p.jsonl", "x\n" * 9, "line 1", "line 3", "... and 6 more"),
]
CSV = [
    prompts("empty CSV", "p.csv", "", "holds no prompt"),
    prompts("header alone", "p.csv", "prompt,kind\n", "holds no prompt"),
    prompts("empty rows", "p.csv", "prompt,kind\n\n,\n", "holds no prompt"),
    prompts(
        "no column of prompts", "p.csv", "text,kind\na red circle,x\n", "has no column 'prompt', only 'text', 'kind'"
    ),
    prompts(
        "misspelt column", "p.csv", "Prompts,kind\na,x\n", "has no column 'prompt'", "is 'Prompts' meant? rename it"
    ),
    prompts("no header", "p.csv", "a red circle\na blue square\n", "has no column 'prompt', only 'a red circle'"),
    prompts("column twice", "p.csv", "prompt,prompt\na,b\n", "two columns called 'prompt'", "rename or remove one"),
    prompts(
        "unquoted comma", "p.csv", "prompt,kind\na, b,x\n", "line 2: has 3 cells, and the header 2", "double quotes"
    ),
    prompts("missing cell", "p.csv", "prompt,kind\na red circle\n", "line 2: has 1 cells, and the header 2"),
    prompts(
        "quote that never closes", "p.csv", 'prompt\na red circle\n"a blue', "line 3: is not CSV", "every quote is"
    ),
    prompts("row without a prompt", "p.csv", "prompt,kind\n,x\n", "line 2: prompt = None", "must be text"),
    prompts("repeated row", "p.csv", 'prompt\n"a\nb"\na red circle\na red circle\n', "line 5: repeats line 4"),
    prompts(
        "metadata in a cell", "p.csv", "prompt,metadata\na red circle,x\n", "metadata = 'x'", "a column of its own"
    ),
    prompts("CSV of another encoding", "p.csv", "prompt\ncaf\xe9\n".encode("latin-1"), "line 2: is not UTF-8 text"),
    prompts("header after a byte order mark", "p.csv", "\ufefftext\na\n", "has no column 'prompt', only 'text'"),
]
NO_TABLES = [
    prompts(
        "text called Parquet", "p.parquet", "a red circle\n" * 9, "is not Parquet that can be read", "write the file"
    ),
    prompts("empty Parquet", "p.parquet", "", "is not Parquet that can be read"),
]
CASES = [*ANY, *TEXT, *JSON_LINES, *CSV]
TABLES = [
    *NO_TABLES,
    table("Parquet cut off", {"prompt": ["a red circle"]}, "is not Parquet that can be read", prepare=cut),
    table("table without prompts", {"text": ["a red circle"]}, "has no column 'prompt', only 'text'"),
    table("table without rows", {"prompt": []}, "holds no prompt"),
    table("table of numbers", {"prompt": [1, 2]}, "row 1: prompt = 1", "must be text"),
    table("gap in a table", {"prompt": ["a red circle", None]}, "row 2: prompt = None", "must be text"),
    table("repeated row of a table", {"prompt": ["a red circle"] * 2}, "row 2: repeats row 1", "remove one"),
]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    return meet(CASES, tmp_path_factory.mktemp("prompts"))


@pytest.fixture(scope="module")
def table_outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    pytest.importorskip("pyarrow")
    return meet(TABLES, tmp_path_factory.mktemp("tables"))


@pytest.mark.parametrize("bad", CASES, ids=lambda bad: bad.name)
def test_prompts_are_refused(bad: Bad, outcomes: dict[str, Outcome]):
    assert_refused(bad, outcomes[bad.name])


@pytest.mark.parametrize("bad", TABLES, ids=lambda bad: bad.name)
def test_tables_are_refused(bad: Bad, table_outcomes: dict[str, Outcome]):
    assert_refused(bad, table_outcomes[bad.name])


@pytest.mark.parametrize("bad", named(CASES, "JSON cut off", "unquoted comma"), ids=lambda bad: bad.name)
def test_prompts_are_refused_by_a_process_of_its_own(bad: Bad, tmp_path: Path):
    assert_refused(bad, meet_alone(bad, tmp_path))
