"""A sample without a reward counts for nothing: not in its group, not in the loss, whatever number lay in its place."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from difalign.core.types import Metadata, RewardOutput
from difalign.objective.advantages import group_advantages
from difalign.train.collector import Batch
from difalign.train.partition import partition
from difalign.train.runtime import Runtime
from tests.train.small_runs import Brightness, rows_of, run_toy, toy_run_config
from tests.train.toy_run import B2_SECTIONS, Quadratic, quiet, toy_config, toy_trainer, weights


@dataclass(frozen=True)
class Unsure(Quadratic):
    """Cannot score samples that begin high; leaves ``instead`` where their score would be."""

    above: float = 0.3
    instead: float = 0.0

    def score(
        self, media: Tensor, prompts: Sequence[str], *, metadata: Metadata | None = None, sigma: float | None = None
    ) -> RewardOutput:
        scores = super().score(media, prompts).scores
        valid = media[:, 0] < self.above
        errors = {int(row): "begins high" for row in (~valid).nonzero()}
        return RewardOutput(torch.where(valid, scores, self.instead), {"first": media[:, 0].float()}, valid, errors)


LENIENT = {"max_failed": 0.6}
STATISTICS: dict[str, dict[str, Any]] = {
    "group": {},
    "global": {"objective": {"advantage": {"std": "global"}}},
    "rollout": {"objective": {"advantage": {"statistics": "rollout"}}},
    "prompt_history": {
        "objective": {"advantage": {"statistics": "prompt_history", "history": {"buffer_size": 16, "min_count": 2}}}
    },
    "stage_history": B2_SECTIONS,
    "pair": {"objective": {"surrogate": "pair", "clip_range": 0.1}},
}


def collected(**sections: Any) -> tuple[Any, Batch]:
    trainer, _ = toy_trainer(toy_config(guards=LENIENT, **sections), reward=Unsure())
    (batch,) = trainer._collector.collect(0, quiet)
    return trainer, batch


def test_the_others_are_compared_among_themselves():
    trainer, batch = collected()
    missing = batch.scored.edge_reward.isnan()
    assert 10 < int(missing.sum()) < len(missing) - 10
    assert torch.equal(missing, (batch.scored.trajectories.final[:, 0] >= 0.3).repeat_interleave(5))
    (found,) = trainer._comparison.advantages([batch])
    among = group_advantages(batch.scored.edge_reward[~missing], batch.scored.group[~missing])
    assert torch.equal(found.advantage[~missing], among.advantage)
    assert not found.advantage[missing].any()


@pytest.mark.golden
def test_a_silent_zero_would_turn_the_sign_of_others():
    """Of four samples one fails: rewards 4.24, 4.99, 6.63, and the mean over three is 5.287."""
    from difalign.objective.advantages import among_scored

    rewards, group = torch.tensor([4.24, 4.99, math.nan, 6.63]), torch.zeros(4, dtype=torch.int64)
    masked = among_scored(rewards, group, group_advantages).advantage
    assert masked.tolist() == pytest.approx([-1.05, -0.30, 0.0, 1.34], abs=0.01)
    assert float(masked.sum()) == pytest.approx(0.0, abs=1e-6)
    silent = group_advantages(rewards.nan_to_num(0.0), group).advantage
    assert silent.tolist() == pytest.approx([0.12, 0.42, -1.62, 1.09], abs=0.02)


@pytest.mark.parametrize("name", STATISTICS)
def test_what_lies_in_its_place_does_not_matter(name):
    after = []
    for instead in (math.nan, -1e9, 0.0):
        trainer, pipeline = toy_trainer(toy_config(guards=LENIENT, **STATISTICS[name]), reward=Unsure(instead=instead))
        before = weights(pipeline)
        for index in range(2):
            trainer.run(index, quiet)
        after.append(weights(pipeline))
        assert not torch.equal(before, after[-1])
    assert torch.equal(after[0], after[1])
    assert torch.equal(after[0], after[2])


@pytest.mark.parametrize("filtered", [True, False])
def test_it_is_not_among_the_rows_of_an_update(filtered):
    trainer, batch = collected(objective={"filter_zero_variance": filtered})
    compared = trainer._comparison.advantages([batch])
    (part,) = partition([batch], compared, trainer._config, Runtime(), update=0)
    missing = batch.scored.edge_reward.isnan().nonzero().flatten().tolist()
    assert missing
    assert not set(part.rows.tolist()) & set(missing)
    assert part.count == len(batch.scored.edge_reward) - len(missing)


def test_a_group_with_one_score_or_none_teaches_nothing():
    trainer, pipeline = toy_trainer(toy_config(guards={"max_failed": 0.99}), reward=Unsure(above=-0.9))
    (batch,) = trainer._collector.collect(0, quiet)
    (found,) = trainer._comparison.advantages([batch])
    few = 0
    for each in batch.scored.group.unique():
        rows = batch.scored.group == each
        if int((~batch.scored.edge_reward[rows].isnan()).sum()) < 2:
            few += 1
            assert not found.advantage[rows].any()
    assert few > 0
    before = weights(pipeline)
    assert math.isfinite(trainer.run(0, quiet)[0]["reward"])
    assert torch.isfinite(weights(pipeline)).all()
    assert before.shape == weights(pipeline).shape


def test_figures_are_those_of_the_scored_samples():
    trainer, batch = collected()
    scored = batch.rewards["total"][~batch.rewards["total"].isnan()]
    row = trainer.run(0, quiet)[0]
    assert row["reward"] == pytest.approx(float(scored.double().mean()), rel=1e-6)
    assert row["reward_std"] == pytest.approx(float(scored.double().std(correction=0)), rel=1e-5)
    assert row["without_reward"] == pytest.approx(1 - len(scored) / len(batch.rewards["total"]))


def test_a_run_that_loses_too_many_ends_with_share_prompt_and_reason():
    trainer, pipeline = toy_trainer(toy_config(guards={"max_failed": 0.05}), reward=Unsure())
    before = weights(pipeline)
    words = r"rollout 1: \d+ of 48 samples .*max_failed = 0\.05 allows.*: begins high; correct"
    with pytest.raises(RuntimeError, match=words):
        trainer.run(0, quiet)
    assert torch.equal(weights(pipeline), before)


def test_a_reward_that_never_fails_may_be_guarded_at_zero():
    trainer, _ = toy_trainer(toy_config(guards={"max_failed": 0.0}))
    assert "without_reward" not in trainer.run(0, quiet)[0]


# --- whole runs --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Blind(Brightness):
    """Cannot score one picture in so many, by what is on it."""

    one_in: int = 9

    def score(
        self, media: Tensor, prompts: Sequence[str], *, metadata: Metadata | None = None, sigma: float | None = None
    ) -> RewardOutput:
        output = super().score(media, prompts)
        valid = (media.flatten(1).sum(dim=1) * 1e4).long() % self.one_in != 0
        errors = {int(row): "too dark" for row in (~valid).nonzero()}
        return RewardOutput(output.scores, output.components, valid, errors)


def test_a_run_goes_on_and_its_gain_is_over_what_both_evaluations_could_score(tmp_path: Path):
    guards = {"max_failed": 0.5, "min_diversity": None, "max_kl": None}
    config = toy_run_config(tmp_path / "run", guards=guards, evaluation={"seeds_per_prompt": 8})
    summary = run_toy(config, reward=Blind())
    rows = rows_of(tmp_path / "run")
    assert any(row.get("without_reward", 0.0) > 0 for row in rows)
    assert 20 < summary["samples"] < 40
    assert math.isfinite(summary["gain"])


def test_an_evaluation_that_loses_too_many_ends_the_run(tmp_path: Path):
    with pytest.raises(RuntimeError, match=r"evaluation 'base': \d+ of 10 samples have no reward"):
        run_toy(toy_run_config(tmp_path / "run", guards={"max_failed": 0.2}), reward=Blind(one_in=2))
