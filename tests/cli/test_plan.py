"""``difalign plan`` shows what was counted, says what cannot be, and loads no model."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from difalign.build.forecast import forecast_process
from difalign.build.plans import build_plans
from difalign.cli.app import app
from difalign.cli.settings import read_config

RUNNER = CliRunner()
SETTINGS = ["sampling.prompts_per_update=12", "training.updates_per_rollout=2", "training.max_seconds=null"]


def plan(*arguments: str) -> str:
    result = RUNNER.invoke(app, ["plan", *arguments], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    return result.stdout


def test_columns_are_the_forecasts() -> None:
    found = json.loads(plan(*SETTINGS, "--processes", "1,2,8,48", "--json"))
    config = read_config(None, SETTINGS)
    for count in (1, 2, 8):
        forecast = forecast_process(
            config, lambda index: build_plans(config, rollout=index), processes=count, latent_shape=(2, 18, 18)
        )
        shown = found["processes"][str(count)]
        assert shown["sampling_forwards"] == forecast.sampling_forwards
        assert shown["stored_bytes"] == forecast.stored_bytes
    assert found["latent_shape"] == [2, 18, 18]
    assert "48 processes cannot share 12 prompts" in found["impossible"]["48"]
    assert found["run"]["prompts_per_update"] == 12
    assert found["run"]["updates"] == 2 * config.training.rollouts


def test_table() -> None:
    lines = plan(*SETTINGS, "sampling.guidance=3").splitlines()
    rows = {" ".join(words[: len(words) - 3]): words[-3:] for line in lines if len(words := line.split()) > 3}
    assert rows["prompts an update"] == ["12", "6", "2"]
    assert rows["processes at work"] == ["100%", "100%", "75%"]
    text = "\n".join(lines)
    assert "as the network computes them, guided" in text
    assert "48 processes cannot share 12 prompts an update" in text
    assert "max_seconds" not in text


def test_a_hub_model_is_counted_without_a_download() -> None:
    text = plan("pipeline=sd35-medium", "-p", "1", "sampling.height=512", "sampling.width=512")
    assert "latents 16x64x64" in text


def test_clock_and_reference_are_mentioned() -> None:
    text = plan("training.max_seconds=60", "objective.kl.kind=velocity")
    assert "training.max_seconds = 60" in text
    assert "rows of the reference" in text


def test_the_way_of_the_interval_is_said() -> None:
    b2 = ["sampling.steps=20", "sampling.plan={kind: split}", "curriculum={}", "training.rollouts=30"]
    text = plan(*b2, "objective.advantage={group_by: seed, selection: {}}")
    assert "curriculum: linear_floor over 100 rollouts; this run has 30" in text
    assert "from the last 14 of 20 steps to the last 16" in text
    assert "may be fewer" in text


@pytest.mark.parametrize("counts", ["0", "two", "", "1;2", "-1"])
def test_numbers_of_processes(counts: str) -> None:
    result = RUNNER.invoke(app, ["plan", f"--processes={counts}"])
    assert result.exit_code == 2
    assert "such as --processes 1,2,8,48" in result.stderr


def test_bad_settings_are_bad_input() -> None:
    result = RUNNER.invoke(app, ["plan", "sampling.stepz=4"])
    assert result.exit_code == 2
    assert "did you mean sampling.steps?" in result.stderr
