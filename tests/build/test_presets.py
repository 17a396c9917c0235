"""Every shipped configuration: sound without its weights, of the published geometry, and at work for two updates."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from difalign.build.cards import load_pipeline_card
from difalign.build.forecast import RunForecast, count_walk, forecast_run
from difalign.build.plans import build_plans
from difalign.build.preflight import prepare
from difalign.build.run import run_flow_grpo
from difalign.core.config import RunConfig
from difalign.core.families import with_family_defaults
from difalign.core.overrides import load_config
from tests.build.shrunk import shrunk, write_random_pipeline
from tests.train.small_runs import rows_of

PRESETS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
LARGE_TEMPFLOW = [path for path in PRESETS if path.stem.startswith("tempflow_") and "tiny" not in path.stem]
LARGE_B2 = [path for path in PRESETS if path.stem.startswith("b2_diffurl_") and "tiny" not in path.stem]


def forecast(config: RunConfig, *, heldout: int = 1) -> RunForecast:
    return forecast_run(config, lambda index: build_plans(config, rollout=index), heldout=heldout)


def name_of(path: Path) -> str:
    return path.stem


@pytest.mark.parametrize("preset", PRESETS, ids=name_of)
def test_preset_is_sound_without_its_weights(preset: Path):
    inputs = prepare(load_config(preset), check_output=False, check_weights=False)
    assert forecast(inputs.config, heldout=len(inputs.heldout_prompts)).evaluation_samples > 0


@pytest.mark.parametrize("preset", LARGE_TEMPFLOW, ids=name_of)
def test_a_tempflow_epoch_is_the_published_one(preset: Path):
    """48 prompts of 4 start noises and 6 explorations at 9 steps each; 279 forwards a start noise, two updates."""
    config = load_config(preset)
    (walk,) = {count_walk(build_plans(config, rollout=index)) for index in range(3)}
    assert (sum(walk.rows), walk.leaves, walk.edges) == (279, 54, 54)
    assert config.prompts_per_rollout == 48
    assert (config.group_size, config.group_size * config.sampling.samples_per_prompt) == (6, 24)
    whole = forecast(config)
    assert whole.samples == whole.recorded_edges == whole.rollouts * 10_368
    assert whole.updates == whole.rollouts * 2


@pytest.mark.parametrize("preset", LARGE_B2, ids=name_of)
def test_a_b2_stage_is_the_published_one(preset: Path):
    """256 start noises of 5 branches; intervals of 14 to 20 steps; (N - s) + 1 + 5 (s - 1) forwards a start noise."""
    config = load_config(preset)
    assert config.prompts_per_rollout * config.roots_per_prompt == 256
    for stage, length in ((0, 14), (14, 14), (15, 15), (29, 16), (43, 17), (58, 18), (72, 19), (86, 20), (99, 20)):
        walk = count_walk(build_plans(config, rollout=stage))
        assert walk.leaves == 5
        assert walk.edges == 5 * length
        assert sum(walk.rows) == 20 - length + 1 + 5 * (length - 1)
    whole = forecast(config)
    assert (whole.rollouts, whole.samples) == (100, 128_000)  # 1280 pictures a stage
    assert config.training.trajectories_per_update == 128


@pytest.mark.parametrize("preset", PRESETS, ids=name_of)
def test_preset_makes_two_updates_on_a_random_model_of_its_class(preset: Path, tmp_path: Path):
    given = load_config(preset)
    card = load_pipeline_card(given.pipeline).card
    given = with_family_defaults(given, card.family)
    config = shrunk(given, write_random_pipeline(card, tmp_path), tmp_path)
    assert config.sampling.plan.kind == given.sampling.plan.kind
    assert config.objective == given.objective
    summary = run_flow_grpo(prepare(config))
    rows = rows_of(tmp_path / "run")
    assert summary["updates"] == len(rows) >= 2
    assert summary["reward_calls"] == forecast(config).samples
    assert rows[0]["ratio_max_deviation"] < 1e-5
    for row in rows[:2]:
        assert row["rows"] > 0
        assert math.isfinite(row["policy_loss"])
        assert 0 < row["grad_norm"] < math.inf
