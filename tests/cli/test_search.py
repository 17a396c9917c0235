"""The command search: what it hands over, its exit codes, and the plan it prints."""

from __future__ import annotations

import inspect
from dataclasses import fields, replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from difalign.build import search_run
from difalign.build.search_run import Outcome
from difalign.build.search_settings import SearchSettings
from difalign.cli import search as search_module
from difalign.cli.app import app
from difalign.report.search_records import (
    RUN_FORMAT,
    CostRecord,
    FailureRecord,
    RunRecord,
    TotalsRecord,
)

RUNNER = CliRunner()
NOTHING = CostRecord(0, 0, 0, 0)
RUN = RunRecord(RUN_FORMAT, {}, {}, {}, None, "cpu", {}, None, TotalsRecord(1, 1, NOTHING), ())


def invoke(*arguments: str, outcome: Outcome, monkeypatch: pytest.MonkeyPatch, folder: Path):
    seen = []
    monkeypatch.setattr(search_run, "run_search", lambda inputs, **_: seen.append(inputs) or outcome)
    result = RUNNER.invoke(app, ["search", *arguments, "--out", str(folder / "out")])
    return result, seen


def test_every_setting_has_an_option():
    options = set(inspect.signature(search_module.search).parameters) - {"quiet"}
    assert options == {field.name for field in fields(SearchSettings)}


def test_one_prompt_and_a_folder_are_enough(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    arguments = ("--prompt", "two red circles")
    result, (inputs,) = invoke(*arguments, outcome=Outcome(RUN, (), 0), monkeypatch=monkeypatch, folder=tmp_path)
    assert result.exit_code == 0, result.output
    assert (inputs.pipeline.card.name, inputs.method, list(inputs.rewards)) == ("tiny-sd3", "pruned", ["tiny-clip"])
    assert inputs.previewed_by == "tiny-noise-aware"
    assert inputs.stages
    assert inputs.budget == {"candidates": 24}


def test_prompts_without_a_winner_are_listed_and_make_the_exit_code_3(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    failures = tuple(FailureRecord(f"prompt {i}", "no score") for i in range(7))
    outcome = Outcome(replace(RUN, failures=failures), (), 0)
    arguments = ("--prompt", "two red circles")
    result, _ = invoke(*arguments, outcome=outcome, monkeypatch=monkeypatch, folder=tmp_path)
    assert result.exit_code == 3
    assert "failed: 'prompt 0': no score" in result.stderr
    assert "and 2 more, listed in run.json" in result.stderr


def test_ctrl_c_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def interrupted(inputs: object, *, quiet: bool) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(search_run, "run_search", interrupted)
    result = RUNNER.invoke(app, ["search", "--prompt", "two red circles", "--out", str(tmp_path / "out")])
    assert result.exit_code == 130
    assert "--resume" in result.stderr


def test_a_dry_run_prints_the_plan_and_writes_nothing(tmp_path: Path):
    arguments = ("--prompt", "two red circles", "--steps", "4", "--n", "4", "--stages", "0.7:0.5", "--micro-batch", "4")
    arguments += ("--reward", "verifier")
    result = RUNNER.invoke(app, ["search", *arguments, "--guidance", "1", "--dry-run", "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert not (tmp_path / "out").exists()
    named = (line.strip() for line in result.stdout.splitlines())
    rows = {line.split("  ")[0]: line.split() for line in named}
    assert rows["evaluations of the network (NFE)"][-2:] == ["12", "12"]
    assert rows["decodes"][-1] == "6"
    assert rows["of which previews"][-1] == "4"
    assert float(rows["seconds"][-1]) > 0
    assert "keep 0.5, verifier reads the guided pictures" in result.stdout
    assert "weights: " in result.stdout
