"""``difalign compare`` as a table, as JSON and as a page, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from difalign.cli.app import app
from tests.report.fake_search import fake_search

RUNNER = CliRunner()


@pytest.fixture
def two(tmp_path: Path) -> list[str]:
    return [str(fake_search(tmp_path / name, keeps=keeps)) for name, keeps in (("bon", ()), ("pruned", (4, 2)))]


def test_a_table_names_gain_interval_wins_and_cost(two: list[str]) -> None:
    result = RUNNER.invoke(app, ["compare", *two])
    assert result.exit_code == 0, result.output
    assert "4 prompts, the same noise; gains over bon" in result.stdout
    assert "pruned: won 0, tied " in result.stdout
    assert "0.55× nfe" in result.stdout
    assert "fewer than 10 prompts" in result.stdout


def test_json_and_a_page(two: list[str], tmp_path: Path) -> None:
    result = RUNNER.invoke(app, ["compare", *two, "--json", "--html", str(tmp_path / "page.html")])
    found = json.loads(result.stdout)
    assert found["base"] == "bon"
    assert found["runs"][0]["run"] == "pruned"
    assert found["runs"][0]["wins"] == 0  # the best of all cannot be beaten by pruning them
    assert "Searches against bon" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_bad_input_is_said_in_one_line(two: list[str], tmp_path: Path) -> None:
    for arguments in (two[:1], [two[0], str(tmp_path)]):
        result = RUNNER.invoke(app, ["compare", *arguments])
        assert result.exit_code == 2
        assert result.stderr.startswith("error: ")
