"""``difalign status`` in words and as JSON, and what it says of a folder without a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from difalign.cli.app import app
from tests.report.fake_run import fake_run_in
from tests.train.small_runs import run_toy, toy_run_config

RUNNER = CliRunner()


def status(*arguments: str) -> str:
    result = RUNNER.invoke(app, ["status", *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_real_run_in_words(tmp_path: Path) -> None:
    summary = run_toy(toy_run_config(tmp_path / "mine"))
    text = status(str(tmp_path / "mine"))
    assert text.startswith(f"{tmp_path / 'mine'}: toy, finished\nprogress: 3 of 3 (100%) rollouts, 3 updates")
    assert "last update: reward 0." in text
    assert f"held-out base after 0 rollouts: {summary['base']:.4f} over 10 samples" in text
    assert f"held-out tuned after 3 rollouts: {summary['tuned']:.4f} over 10 samples" in text
    assert "left:" not in text


def test_a_run_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fake_run_in(tmp_path / "runs")("demo", finished=False, evaluations=(0,), rollouts=10)
    text = status("demo")
    assert "running, last written" in text
    assert "speed: 3.7 s a rollout" in text  # 3.9 between two rollouts, the first one at 0


def test_json(tmp_path: Path) -> None:
    folder = fake_run_in(tmp_path)("demo")
    found = json.loads(status(str(folder), "--json"))
    assert found["state"] == "finished"
    assert found["rollouts"] == 60
    assert found["figures"]["rollout"] == 59
    assert [item["label"] for item in found["evaluations"]] == ["base", "during", "during", "tuned"]


@pytest.mark.parametrize("make", [True, False])
def test_no_run_is_bad_input(tmp_path: Path, make: bool) -> None:
    folder = tmp_path / "empty"
    if make:
        folder.mkdir()
    result = RUNNER.invoke(app, ["status", str(folder)])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert "give the folder of a run" in result.stderr
