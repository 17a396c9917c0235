"""A worker: rows with every figure, training apart from scoring; and which runs are still to be made."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.curves import __main__ as commands
from benchmarks.curves import training
from benchmarks.curves.methods import FAMILIES
from benchmarks.curves.rows import read_lines
from benchmarks.curves.training import Job, run_job, settings_digest, spread
from benchmarks.curves.tuning import ranked, ranking
from difalign.core.prompts import Prompt
from tests.benchmarks.curves.made_up_runs import lines_of

SMALL = {"sampling.prompts_per_update": "2", "sampling.samples_per_prompt": "2"}
KEYS = {"method", "seed", "update", "forwards", "training_rows", "reward_calls", "seconds", "cpu_seconds"}
KEYS |= {"heldout", "heldout_strict", "diversity", "point", "final", "settings", "started"}


@pytest.fixture
def few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scoring by six samples instead of hundreds."""
    family = FAMILIES["tiny-sd3"]
    small = replace(family, probe=replace(family.probe, prompts=3, steps=2))
    monkeypatch.setattr(training, "FAMILIES", {"tiny-sd3": small})


def job(file: Path, **changes: object) -> Job:
    plain = Job(
        "tiny-sd3", "flow_grpo", seed=0, budget=1e-3, points=2, output=str(file), changes=SMALL, command="python -m x"
    )
    return replace(plain, **changes)


@pytest.mark.usefixtures("few_samples")
def test_rows_say_what_was_spent_and_reached(tmp_path: Path):
    file = tmp_path / "rows.jsonl"
    run_job(job(file))
    before, after = read_lines(file)
    assert set(before) >= KEYS
    assert set(after) >= KEYS
    assert (before["final"], after["final"]) == (False, True)
    assert all(before[key] == 0 for key in ("update", "forwards", "training_rows", "reward_calls", "seconds"))
    assert after["update"] == 1
    assert after["forwards"] == 2 * 2 * 8
    assert after["reward_calls"] == 4
    assert after["training_rows"] % 4 == 0  # whole walks of four recorded steps
    assert after["seconds"] > 0
    assert after["cpu_seconds"] > 0
    assert before["run"]["command"] == "python -m x"
    assert {"git_commit", "packages", "processor"} <= set(before["run"]["environment"])
    assert "run" not in after


@pytest.mark.usefixtures("few_samples")
def test_long_rollout_is_scored_once(tmp_path: Path):
    file = tmp_path / "rows.jsonl"
    run_job(job(file, budget=1.0, points=10_000))
    updates = [line["update"] for line in read_lines(file)]
    assert updates == list(range(len(updates)))


@pytest.mark.usefixtures("few_samples")
def test_trial_is_one_line_scored_on_training_prompts(tmp_path: Path):
    file = tmp_path / "tuning.jsonl"
    run_job(job(file, trial=True, prompts="train"))
    (line,) = read_lines(file)
    assert [point["final"] for point in line["points"]] == [False, True]
    assert {"train", "train_strict"} <= set(line["points"][0])
    assert "heldout" not in line["points"][0]
    assert "sampling.prompts_per_update=2" in ranking([line], pipeline="tiny-sd3")


def test_trials_are_ranked_by_the_last_reward_within_method_and_budget():
    def trial(method: str, score: float, budget: float = 60.0) -> dict[str, object]:
        return {
            "pipeline": "p",
            "method": method,
            "run": {"budget": budget},
            "points": [{"train": 0}, {"train": score}],
        }

    lines = [trial("b", 0.9), trial("a", 0.1), trial("a", 0.3), trial("a", 0.2, 30.0)]
    found = [(line["method"], line["points"][-1]["train"]) for line in ranked(lines, pipeline="p")]
    assert found == [("a", 0.2), ("a", 0.3), ("a", 0.1), ("b", 0.9)]
    assert ranked(lines, pipeline="q") == []


def test_digest_changes_with_settings_and_budget_alone(tmp_path: Path):
    first = settings_digest(job(tmp_path))
    assert first == settings_digest(job(tmp_path / "elsewhere", command="another"))
    others = [
        job(tmp_path, budget=2.0),
        job(tmp_path, seed=1),
        job(tmp_path, method="tempflow"),
        job(tmp_path, changes={**SMALL, "training.learning_rate": "1e-3"}),
    ]
    assert len({first, *map(settings_digest, others)}) == 5


def test_prompts_are_spread_over_the_whole_list():
    prompts = [Prompt(str(i)) for i in range(10)]
    assert [prompt.text for prompt in spread(prompts, 5)] == ["1", "3", "5", "7", "9"]
    assert spread(prompts, 99) == prompts


def todo(folder: Path, *arguments: str) -> list[tuple[str, int]]:
    words = [
        "run",
        "--pipeline",
        "tiny-sd3",
        "--methods",
        "flow_grpo",
        "tempflow",
        "--results",
        str(folder),
        *arguments,
    ]
    options = commands.parse(words)
    return [(each.method, each.seed) for each in commands.curve_jobs(options, FAMILIES["tiny-sd3"], "command")]


def test_complete_runs_are_passed_over(tmp_path: Path):
    seeds = ["--seeds", "0", "1"]
    options = commands.parse(["run", "--pipeline", "tiny-sd3", "--results", str(tmp_path), *seeds])
    jobs = commands.curve_jobs(options, FAMILIES["tiny-sd3"], "command")
    marks = {(each.method, each.seed): settings_digest(each) for each in jobs}
    assert todo(tmp_path, *seeds) == [("flow_grpo", 0), ("tempflow", 0), ("flow_grpo", 1), ("tempflow", 1)]
    done = lines_of("flow_grpo", 0, [0.1, 0.2], settings=marks["flow_grpo", 0])
    stopped = lines_of("tempflow", 0, [0.1, 0.2], settings=marks["tempflow", 0], complete=False)
    changed = lines_of("flow_grpo", 1, [0.1, 0.2], settings="older")
    (tmp_path / "tiny-sd3.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*done, *stopped, *changed]))
    assert todo(tmp_path, *seeds) == [("tempflow", 0), ("flow_grpo", 1), ("tempflow", 1)]
    assert todo(tmp_path, *seeds, "--budget", "5")[0] == ("flow_grpo", 0)


def test_trials_are_every_combination_on_a_seed_of_their_own(tmp_path: Path):
    words = ["tune", "--pipeline", "tiny-sd3", "--methods", "flow_grpo", "--results", str(tmp_path)]
    words += ["--vary", "training.learning_rate", "1e-4", "2e-4", "--vary", "sampling.steps", "8", "10"]
    jobs = commands.tuning_jobs(commands.parse([*words, "--set", "objective.weight=uniform"]), FAMILIES["tiny-sd3"], "")
    assert len(jobs) == 4
    assert {(each.seed, each.prompts, each.trial) for each in jobs} == {(100, "train", True)}
    assert jobs[1].changes == {
        "objective.weight": "uniform",
        "training.learning_rate": "1e-4",
        "sampling.steps": "10",
    }
