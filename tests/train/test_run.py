"""A run from beginning to end, on a toy: what its folder holds, what it counts, and what it keeps apart."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from difalign.build.plans import build_plans
from difalign.core.overrides import load_config
from difalign.report.images import read_tiles, to_uint8
from difalign.report.run_folder import read_run
from difalign.rollout.trie import count_forwards, count_leaves
from difalign.train.evaluation import EvaluationPlan, EvaluationResult, evaluate
from difalign.train.policy_gradient import PolicyGradient
from difalign.train.runtime import Runtime
from tests.folders import file_names
from tests.train.small_runs import (
    HELDOUT,
    WEIGHTS,
    Brightness,
    Painter,
    painter,
    rows_of,
    rows_without_clocks,
    run_toy,
    toy_run_config,
    weights_of,
    without_clocks,
)

EMA = {"enabled": True, "every": 1, "max_decay": 0.5}


@dataclass(frozen=True)
class Finished:
    """A run that came to its end."""

    folder: Path
    summary: dict[str, Any]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Two rollouts of two updates in two epochs, from seed 5."""
    folder = tmp_path_factory.mktemp("run")
    training = {"rollouts": 2, "updates_per_rollout": 2, "inner_epochs": 2}
    return Finished(folder, run_toy(toy_run_config(folder, seed=5, training=training, diagnostics={"every": 2})))


def stored_scores(folder: Path, number: int) -> list[dict[str, Any]]:
    return json.loads((folder / "evaluations" / f"{number:06d}.json").read_text())["records"]


def heldout_scores(pipeline: Painter) -> EvaluationResult:
    """The evaluation of the toy runs, outside a run."""
    plan = EvaluationPlan(steps=4, seeds_per_prompt=2, micro_batch=8)
    return evaluate(pipeline, Brightness(), HELDOUT, plan, Runtime(), rollout_index=0, label="base")


def with_weights(weights: dict[str, Tensor]) -> Painter:
    pipeline = painter()
    pipeline.network.load_state_dict(weights)
    return pipeline


# --- what is left behind -----------------------------------------------------------------------------------------


def test_folder_holds_everything_and_nothing_else(finished: Finished) -> None:
    assert finished.summary["best"]["rollout"] == 2
    state = ("average.safetensors", "optimizer.safetensors", "trainer.json", "weights.safetensors")
    assert set(file_names(finished.folder)) == {
        *(f"checkpoints/{n}/{name}" for n in ("000000", "000002") for name in ("manifest.json", "run.json", *state)),
        "best/" + WEIGHTS,
        "config.yaml",
        "diagnostics/000000.json",
        "diagnostics/000000.png",
        "environment.json",
        "evaluations/000000.json",
        "evaluations/000000.png",
        "evaluations/000002.json",
        "evaluations/000002.png",
        "metrics.jsonl",
        WEIGHTS,
        "report.html",
        "summary.json",
    }


def test_summary_is_what_the_evaluations_say(finished: Finished) -> None:
    summary = finished.summary
    assert json.loads((finished.folder / "summary.json").read_text()) == summary
    base, tuned = stored_scores(finished.folder, 0), stored_scores(finished.folder, 2)
    assert [(r["prompt"], r["seed"]) for r in base] == [(r["prompt"], r["seed"]) for r in tuned]
    before, after = ([record["scores"]["total"] for record in records] for records in (base, tuned))
    assert summary["base"] == pytest.approx(sum(before) / len(before), abs=1e-12)
    assert summary["tuned"] == pytest.approx(sum(after) / len(after), abs=1e-12)
    assert summary["gain"] == pytest.approx(summary["tuned"] - summary["base"], abs=1e-12)
    low, high = summary["gain_ci95"]
    assert low <= summary["gain"] <= high
    assert (summary["prompts"], summary["samples"]) == (5, 10)
    assert (summary["seed"], summary["rollouts"], summary["updates"]) == (5, 2, 8)
    assert set(summary["scores"]) == {"total", "square"}
    for kind, count in (("low", 2), ("high", 3)):
        entry = summary["per_category"][kind]
        means = [
            sum(r["scores"]["total"] for r in records if r["kind"] == kind) / (2 * count) for records in (base, tuned)
        ]
        assert entry["n"] == count
        assert [entry["base"], entry["tuned"]] == pytest.approx(means, abs=1e-12)
        assert entry["gain"] == pytest.approx(means[1] - means[0], abs=1e-12)


def test_seconds_of_training_are_part_of_the_whole(finished: Finished) -> None:
    assert 0.0 < finished.summary["training_seconds"] < finished.summary["seconds"]
    stamps = [row["seconds"] for row in rows_of(finished.folder)]
    assert stamps == sorted(stamps)
    assert stamps[-1] <= finished.summary["training_seconds"]


def test_metrics_hold_a_row_an_update_and_finite_numbers_only(finished: Finished) -> None:
    rows = rows_of(finished.folder)
    assert [(row["rollout"], row["update"]) for row in rows] == [(u // 4, u) for u in range(8)]
    assert all(isinstance(value, int | float) and math.isfinite(value) for row in rows for value in row.values())
    needed = {"reward", "reward_std", "reward/square", "loss", "grad_norm", "clip_fraction", "ratio_max_deviation"}
    assert all(needed <= set(row) for row in rows)
    assert all(row["learning_rate"] == 0.02 for row in rows)


def test_the_first_update_of_every_rollout_is_on_policy_and_no_other(finished: Finished) -> None:
    deviations = [row["ratio_max_deviation"] for row in rows_of(finished.folder)]
    assert max(deviations[::4]) < 1e-6
    assert all(deviation > 1e-6 for index, deviation in enumerate(deviations) if index % 4)


def test_configuration_reads_back_as_the_same(tmp_path: Path) -> None:
    config = toy_run_config(tmp_path, sampling={"plan": {"kind": "window", "size": 2, "low": 0, "high": 3}})
    run_toy(config)
    assert load_config(tmp_path / "config.yaml") == config


def test_environment_says_versions_and_processes(finished: Finished) -> None:
    environment = json.loads((finished.folder / "environment.json").read_text())
    assert environment["processes"] == finished.summary["processes"] == 1
    assert {"torch", "diffusers", "accelerate"} <= set(environment["packages"])


def test_grids_show_the_evaluated_samples(finished: Finished) -> None:
    expected = heldout_scores(painter())
    assert expected.images is not None
    tiles = read_tiles(finished.folder / "evaluations" / "000000.png")
    keys = [expected.evaluation.records[index].key for index in expected.shown]
    assert set(tiles) == set(keys)
    for key, pixels in zip(keys, to_uint8(expected.images), strict=True):
        assert bytes(tiles[key].tobytes()) == pixels.tobytes()
    assert read_tiles(finished.folder / "evaluations" / "000002.png").keys() == tiles.keys()


def test_report_tells_the_run(finished: Finished) -> None:
    page = (finished.folder / "report.html").read_text()
    assert f"{finished.summary['base']:.3f}" in page
    assert f"{finished.summary['tuned']:.3f}" in page
    assert not read_run(finished.folder).problems


def test_lines_and_table_go_to_standard_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    summary = run_toy(toy_run_config(tmp_path))
    out, err = capfd.readouterr()
    assert out == ""
    for words in (
        f"held-out base: {summary['base']:.4f} over 10 samples",
        f"held-out tuned: {summary['tuned']:.4f} over 10 samples",
        "rollout 3/3",
        f"report: {tmp_path / 'report.html'}",
    ):
        assert words in err
    table = err[err.index("Held-out score") :]
    assert all(kind in table for kind in ("low", "high", "all"))
    assert f"{summary['base']:.3f}" in table


# --- what is counted ---------------------------------------------------------------------------------------------

PLANS = {
    "plain": {"kind": "plain"},
    "window": {"kind": "window", "size": 2, "low": 0, "high": 3},
    "branch": {"kind": "branch", "mode": "early_k", "k": 2, "children": 3},
    "split": {"kind": "split", "at": 1, "children": 3},
    "cascade": {"kind": "cascade", "at": [0, 1], "children": 2, "last_step_noise": False},
}
# (forwards, samples) of one start noise on four steps. branch: a trunk of 2 rows and 3 tails of 3 and of 2 rows;
# split: one row at steps 0 and 1, then three rows at two steps; cascade: 1, 2, 4 and 4 rows.
ARITHMETIC = {"plain": (4, 1), "window": (4, 1), "branch": (2 + 3 * 3 + 3 * 2, 6), "split": (2 + 3 * 2, 3)}
ARITHMETIC["cascade"] = (1 + 2 + 4 + 4, 4)


@pytest.mark.parametrize("kind", PLANS)
def test_forwards_and_reward_calls_are_the_arithmetic_of_the_plan(tmp_path: Path, kind) -> None:
    config = toy_run_config(
        tmp_path, sampling={"plan": PLANS[kind]}, training={"rollouts": 2, "updates_per_rollout": 2}
    )
    pipeline = painter()
    summary = run_toy(config, pipeline=pipeline)
    roots = 2 * 2 * 2 * 4  # rollouts, updates, prompts, start noises
    forwards, samples = ARITHMETIC[kind]
    assert summary["denoiser_forwards"] == roots * forwards == count_forwards(build_plans(config, rollout=0), roots)
    assert summary["reward_calls"] == roots * samples == count_leaves(build_plans(config, rollout=0), roots)
    assert summary["evaluation_forwards"] == 2 * 10 * 4
    rows = rows_of(tmp_path)
    assert [row["denoiser_forwards"] for row in rows] == [roots * forwards * part // 2 for part in (1, 1, 2, 2)]
    assert [row["reward_calls"] for row in rows] == [roots * samples * part // 2 for part in (1, 1, 2, 2)]
    trained = sum(row["rows"] for row in rows)  # each recorded step is evaluated once more, in training
    tried = 2 * 8  # a micro-batch with gradient and one without, before anything is sampled
    assert sum(pipeline.batches) == tried + roots * forwards + 2 * 10 * 4 + trained


def test_forwards_of_every_evaluation_are_counted(tmp_path: Path) -> None:
    summary = run_toy(toy_run_config(tmp_path, evaluation={"every": 1}))
    assert summary["evaluation_forwards"] == 4 * 10 * 4  # before, after one, after two, after three


def test_fewer_heldout_prompts_are_the_first_ones(tmp_path: Path) -> None:
    summary = run_toy(toy_run_config(tmp_path, evaluation={"limit": 3, "seeds_per_prompt": 1}))
    assert [record["prompt"] for record in stored_scores(tmp_path, 0)] == [prompt.text for prompt in HELDOUT[:3]]
    assert (summary["prompts"], summary["samples"]) == (3, 3)


# --- what is kept apart ------------------------------------------------------------------------------------------


def test_run_learns_and_is_a_function_of_its_seed(tmp_path: Path) -> None:
    def go(name: str, seed: int) -> dict[str, Any]:
        config = toy_run_config(tmp_path / name, seed=seed, training={"rollouts": 8, "learning_rate": 0.05})
        return without_clocks(run_toy(config))

    first, again, other = go("first", 0), go("again", 0), go("other", 1)
    assert first == again
    rows = [rows_without_clocks(tmp_path / name) for name in ("first", "again", "other")]
    assert rows[0] == rows[1] != rows[2]
    assert first["gain_ci95"][0] > 0.0
    assert other["base"] == first["base"]  # held-out noise is of the prompt, not of the run
    assert other["tuned"] != first["tuned"]


def test_evaluation_before_training_is_that_of_the_untouched_weights(tmp_path: Path) -> None:
    run_toy(toy_run_config(tmp_path))
    untouched = heldout_scores(painter()).evaluation.records
    assert [record["scores"] for record in stored_scores(tmp_path, 0)] == [dict(r.scores) for r in untouched]


def test_evaluation_after_training_is_that_of_the_saved_weights(tmp_path: Path) -> None:
    run_toy(toy_run_config(tmp_path))
    tuned = heldout_scores(with_weights(weights_of(tmp_path))).evaluation.records
    assert [record["scores"] for record in stored_scores(tmp_path, 3)] == [dict(r.scores) for r in tuned]


def test_evaluations_on_the_way_change_nothing(tmp_path: Path) -> None:
    quiet = run_toy(toy_run_config(tmp_path / "quiet"))
    often = run_toy(toy_run_config(tmp_path / "often", evaluation={"every": 1}))
    assert often["tuned"] == quiet["tuned"]
    assert weights_of(tmp_path / "often") == weights_of(tmp_path / "quiet")
    labels = {path.stem: json.loads(path.read_text())["label"] for path in (tmp_path / "often").glob("eval*/*.json")}
    assert labels == {"000000": "base", "000001": "training", "000002": "training", "000003": "tuned"}
    assert read_run(tmp_path / "often").latest is not None


def test_average_is_evaluated_and_saved_and_training_goes_on_from_its_own_weights(tmp_path: Path) -> None:
    plain, averaged = painter(), painter()
    run_toy(toy_run_config(tmp_path / "plain"), pipeline=plain)
    run_toy(toy_run_config(tmp_path / "ema", training={"ema": EMA}, evaluation={"every": 1}), pipeline=averaged)
    assert plain.weights() == averaged.weights()  # lent for four evaluations and a file, given back each time
    saved = weights_of(tmp_path / "ema")
    assert saved != averaged.weights()
    tuned = heldout_scores(with_weights(saved)).evaluation.records
    assert [record["scores"] for record in stored_scores(tmp_path / "ema", 3)] == [dict(r.scores) for r in tuned]
    own = heldout_scores(averaged).evaluation.records
    assert [record["scores"] for record in stored_scores(tmp_path / "ema", 3)] != [dict(r.scores) for r in own]


def test_saved_average_follows_its_recursion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decays of the released code after 0, 1 and 2 steps: 1/10, 2/11, 3/12."""
    pipeline = painter()
    history = [pipeline.weights()]
    run = PolicyGradient.run

    def remember(self: PolicyGradient, index: int, report: Any) -> list[dict[str, float]]:
        rows = run(self, index, report)
        history.append(pipeline.weights())
        return rows

    monkeypatch.setattr(PolicyGradient, "run", remember)
    run_toy(toy_run_config(tmp_path, training={"ema": EMA}), pipeline=pipeline)
    for name, saved in weights_of(tmp_path).items():
        average = history[0][name]
        for step, weights in enumerate(history[1:]):
            decay = min((1 + step) / (10 + step), 0.5)
            average = decay * average + (1 - decay) * weights[name]
        torch.testing.assert_close(saved, average)


def test_average_that_was_never_taken_does_not_hide_what_was_learnt(tmp_path: Path, capfd) -> None:
    """The clock stops the run before the first average: the trained weights are evaluated and saved."""
    pipeline = painter()
    config = toy_run_config(tmp_path, training={"ema": {**EMA, "every": 3}, "max_seconds": 1e-9})
    summary = run_toy(config, pipeline=pipeline)
    assert summary["rollouts"] == 1
    assert weights_of(tmp_path) == pipeline.weights() != painter().weights()
    assert summary["gain"] != 0.0
    assert "fewer than training.ema.every=3 steps" in capfd.readouterr().err


def test_full_training_saves_the_network_and_no_adapters(tmp_path: Path) -> None:
    run_toy(toy_run_config(tmp_path, training={"trainable": "full"}))
    assert (tmp_path / "network" / "diffusion_pytorch_model.safetensors").is_file()
    assert not (tmp_path / WEIGHTS).exists()
