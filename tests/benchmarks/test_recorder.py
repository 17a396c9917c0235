"""What a benchmark leaves behind: one line that says how to get it again, and on what it was measured."""

from __future__ import annotations

import json
import platform
from argparse import Namespace
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import torch

import difalign
from benchmarks import recorder


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """A command line sets the threads of its process; the other tests keep theirs."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def options_of(*arguments: str) -> Namespace:
    parser = recorder.command_line("What is measured.", rounds=5)
    parser.add_argument("--pipeline", default="tiny-sd3")
    return recorder.parse(parser, arguments)


def recorded(*arguments: str, results: dict[str, object] | None = None) -> dict[str, object]:
    return recorder.record("toy", arguments, options=options_of(*arguments), results=results or {})


def test_line_is_printed_and_appended(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "results" / "toy.jsonl"
    entries = [recorded("--output", str(file), results={"ratio": ratio}) for ratio in (0.25, 0.5)]
    assert [json.loads(line) for line in file.read_text().splitlines()] == entries
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == entries
    assert [entry["results"] for entry in entries] == [{"ratio": 0.25}, {"ratio": 0.5}]


def test_nothing_is_written_unless_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    recorded()
    assert not list(tmp_path.iterdir())


def test_machine_versions_threads_and_date_are_noted():
    entry = recorded("--threads", "2")
    environment = entry["environment"]
    assert isinstance(environment, dict)
    assert entry["threads"] == torch.get_num_threads() == 2
    assert environment["python"] == platform.python_version()
    assert environment["processor"]
    assert environment["cpu_count"] >= 1
    assert environment["packages"]["difalign"] == difalign.__version__
    assert {"torch", "diffusers", "transformers"} <= set(environment["packages"])
    age = datetime.now(UTC) - datetime.fromisoformat(str(entry["date"]))
    assert timedelta(0) <= age < timedelta(minutes=1)


def test_command_repeats_the_measurement_and_options_hold_the_defaults():
    entry = recorded("--rounds", "3", "--pipeline", "two words")
    assert entry["command"] == "python -m benchmarks.bench_toy --rounds 3 --pipeline 'two words'"
    assert entry["options"] == {"rounds": 3, "threads": 1, "pipeline": "two words"}


def test_line_names_no_folder_of_the_machine(tmp_path: Path):
    text = json.dumps(recorded("--output", str(tmp_path / "out.jsonl"), "--pipeline", str(tmp_path / "model")))
    assert str(tmp_path) not in text
    assert '"pipeline": "model"' in text


def test_figures_keep_four_significant_digits_and_whole_numbers_all():
    entry = recorded(results={"a": {"b": [1.23456789e-5]}, "forwards": 123456, "text": "x"})
    assert entry["results"] == {"a": {"b": [1.235e-5]}, "forwards": 123456, "text": "x"}


def test_a_figure_that_is_no_number_is_not_recorded():
    with pytest.raises(AssertionError, match="finite"):
        recorded(results={"ratio": float("nan")})


@pytest.mark.parametrize("name", ["rounds", "threads"])
def test_counts_below_one_are_refused(name: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop:
        options_of(f"--{name}", "0")
    assert stop.value.code == 2
    assert f"--{name} is 0" in capsys.readouterr().err
