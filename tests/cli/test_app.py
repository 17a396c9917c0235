"""The commands that start nothing: what can be named, what a configuration is, and whether it is sound."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from difalign.cli import train as train_command
from difalign.cli.app import app
from difalign.cli.settings import read_config
from difalign.core.config import RunConfig
from difalign.core.overrides import load_config
from difalign.train.interrupt import Interrupted

RUNNER = CliRunner()


def output(*arguments: str) -> str:
    result = RUNNER.invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return result.stdout


def test_help_names_every_command():
    text = output("--help")
    assert all(
        name in text
        for name in ("train", "plan", "search", "score", "status", "doctor", "config", "pipelines", "rewards")
    )
    assert all(name in output("config", "--help") for name in ("show", "validate", "schema", "diff"))


def test_lists():
    assert all(name in output("pipelines", "list") for name in ("tiny-sd3", "sd35-medium"))
    assert "verifier" in output("rewards", "list")


def test_shown_configuration_is_the_one_that_runs(tmp_path: Path):
    shown = tmp_path / "shown.yaml"
    shown.write_text(output("config", "show", "seed=7", "sampling.plan.kind=branch"))
    assert load_config(shown) == read_config("demo", ["seed=7", "sampling.plan.kind=branch"])
    assert read_config(None, []) == read_config("demo", [])


def test_schema_has_every_section():
    schema = json.loads(output("config", "schema"))
    assert set(schema["properties"]) == set(RunConfig.model_fields)
    assert schema["additionalProperties"] is False


def test_train_hands_over_what_it_checked(monkeypatch: pytest.MonkeyPatch):
    seen = []
    checked = object()

    def run(inputs: object) -> None:
        seen.append(inputs)

    monkeypatch.setattr(train_command, "check_run", lambda config: checked if config.seed == 5 else None)
    monkeypatch.setattr("difalign.build.run.run_flow_grpo", run)
    output("train", "seed=5")
    assert seen == [checked]


def test_validate_says_what_a_rollout_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    from difalign.build import preflight

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(preflight, "pipeline_weight_problems", lambda pipeline: iter(()))
    text = output("config", "validate", "sampling.prompts_per_update=3", "training.updates_per_rollout=2")
    assert text.startswith("ok: tiny-sd3 with verifier; a rollout is 6 of ")


def test_diff_lists_keys_with_both_values(tmp_path: Path):
    (tmp_path / "a.yaml").write_text("seed: 1\ntraining:\n  rollouts: 100\n  betas: [0.9, 0.99]\n")
    (tmp_path / "b.yaml").write_text("seed: 2\n")
    a, b = str(tmp_path / "a.yaml"), str(tmp_path / "b.yaml")
    lines = [line.split() for line in output("config", "diff", a, b).splitlines()]
    assert ["seed", "1", "2"] in lines
    assert ["training.rollouts", "100", "–"] in lines
    assert ["training.betas", "[0.9,", "0.99]", "–"] in lines
    assert output("config", "diff", a, a).strip() == "no difference"


def test_resolved_diff_fills_in_defaults(tmp_path: Path):
    (tmp_path / "a.yaml").write_text("name: x\ntraining:\n  rollouts: 100\n  betas: [0.9, 0.99]\n")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("name: x\n")
    text = output("config", "diff", str(tmp_path / "a.yaml"), str(tmp_path / "run"), "--resolved")
    assert "training.betas" in text
    assert "[0.9, 0.999]" in text
    assert "rollouts" not in text  # 100 is the default


def test_diff_of_what_is_no_configuration(tmp_path: Path):
    result = RUNNER.invoke(app, ["config", "diff", "demo", "dem"])
    assert result.exit_code == 2
    assert "did you mean 'demo'?" in result.stderr


def test_validate_refuses_what_cannot_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    result = RUNNER.invoke(app, ["config", "validate", "sampling.height=40"])
    assert result.exit_code == 2
    assert "sampling.height = 40" in result.stderr


@pytest.mark.parametrize(("signum", "code"), [(2, 130), (15, 143)])
def test_train_that_a_signal_has_stopped_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, signum: int, code: int):
    def run(inputs: object) -> None:
        raise Interrupted("after 3 of 9 rollouts; go on with the same command and resume=latest", signum)

    monkeypatch.setattr(train_command, "check_run", lambda config: None)
    monkeypatch.setattr("difalign.build.run.run_flow_grpo", run)
    result = RUNNER.invoke(app, ["train"])
    assert result.exit_code == code
    assert result.stderr == "stopped: after 3 of 9 rollouts; go on with the same command and resume=latest\n"
