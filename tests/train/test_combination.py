"""Rewards in units of their own: what the configuration asks for is what the update gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from difalign.core.config import RunConfig
from difalign.core.types import Metadata, RewardOutput
from difalign.objective.advantages import group_advantages
from difalign.objective.reward_scales import prompt_ranks
from difalign.rollout.grouping import edge_rewards
from difalign.train.combination import Combination
from difalign.train.runtime import Runtime
from difalign.train.scoring import Media
from tests.train.together import run_together
from tests.train.toy_run import Quadratic, quiet, toy_config, toy_trainer, weights


@dataclass(frozen=True)
class Two(Quadratic):
    """A large one and a small one, as a composite reports them."""

    def score(
        self, media: Tensor, prompts: Sequence[str], *, metadata: Metadata | None = None, sigma: float | None = None
    ) -> RewardOutput:
        large = 100.0 * super().score(media, prompts).scores
        small = 0.01 * media[:, 1].float()
        return RewardOutput(large + small, {"large": large, "small": small, "small/scaled": 50.0 * small})


def with_rewards(large: dict[str, Any], small: dict[str, Any], **sections: Any) -> RunConfig:
    return toy_config(rewards={"large": large, "small": small}, **sections)


def scale(kind: str, weight: float = 1.0) -> dict[str, Any]:
    return {"weight": weight, "scale": {"kind": kind}}


def test_unscaled_rewards_are_the_sum_that_the_reward_itself_gives():
    trainer, _ = toy_trainer(with_rewards({}, {}), reward=Two())
    (batch,) = trainer._collector.collect(0, quiet)
    assert torch.equal(batch.rewards["total"], batch.rewards["large"] + batch.rewards["small"])
    assert not batch.parts


@pytest.mark.parametrize("std", ["group", "global", "none"])
def test_a_group_scale_weights_advantages(std):
    advantage = {"advantage": {"std": std, "clip": 1e6}}
    trainer, _ = toy_trainer(with_rewards(scale("group", 2.0), scale("group", -0.5), objective=advantage), reward=Two())
    (batch,) = trainer._collector.collect(0, quiet)
    (found,) = trainer._comparison.advantages([batch])
    parts = [
        weight
        * group_advantages(
            edge_rewards(batch.rewards[name], batch.scored.trajectories), batch.scored.group, std=std
        ).advantage
        for name, weight in (("large", 2.0), ("small", -0.5))
    ]
    torch.testing.assert_close(found.advantage, sum(parts), rtol=1e-6, atol=1e-6)
    assert float(parts[1].abs().max()) > 0.005  # and both are there


def test_with_a_group_scale_the_size_of_a_reward_does_not_matter():
    @dataclass(frozen=True)
    class Larger(Two):
        def score(
            self, media: Tensor, prompts: Sequence[str], *, metadata: Metadata | None = None, sigma: float | None = None
        ) -> RewardOutput:
            output = super().score(media, prompts)
            return replace(output, components={**output.components, "large": 1024.0 * output.components["large"]})

    config = with_rewards(scale("group"), scale("group"), objective={"advantage": {"eps": 0.0}})
    found = []
    for reward in (Two(), Larger()):
        trainer, pipeline = toy_trainer(config, reward=reward)
        trainer.run(0, quiet)
        found.append(weights(pipeline))
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-7)


def test_what_is_not_of_a_group_is_compared_as_one_reward():
    trainer, _ = toy_trainer(
        with_rewards(scale("group"), scale("none", 3.0), objective={"advantage": {"clip": 100.0}}), reward=Two()
    )
    (batch,) = trainer._collector.collect(0, quiet)
    (found,) = trainer._comparison.advantages([batch])
    walks, group = batch.scored.trajectories, batch.scored.group
    expected = (
        group_advantages(edge_rewards(batch.rewards["large"], walks), group).advantage
        + group_advantages(edge_rewards(3.0 * batch.rewards["small"], walks), group).advantage
    )
    torch.testing.assert_close(found.advantage, expected, rtol=1e-6, atol=1e-6)


def test_ranks_and_constants_add_up_sample_by_sample():
    small = {"weight": 4.0, "scale": {"kind": "fixed", "mean": 0.0, "std": 0.02}}
    trainer, _ = toy_trainer(with_rewards(scale("rank", 0.5), small), reward=Two())
    (batch,) = trainer._collector.collect(0, quiet)
    prompt = batch.prompt_index[batch.scored.trajectories.final_root]
    expected = 0.5 * prompt_ranks(batch.rewards["large"], prompt) + 4.0 * 50.0 * batch.rewards["small"]
    torch.testing.assert_close(batch.rewards["total"], expected, rtol=1e-6, atol=1e-6)


def test_a_gate_is_judged_by_the_raw_score():
    large = scale("rank") | {"gate": {"at_least": -40.0, "otherwise": -3.0}}
    trainer, _ = toy_trainer(with_rewards(large, {"weight": 0.0}), reward=Two())
    (batch,) = trainer._collector.collect(0, quiet)
    shut = batch.rewards["large"] < -40.0
    assert 0 < int(shut.sum()) < len(shut)
    assert (batch.rewards["total"][shut] == -3.0).all()
    assert (batch.rewards["total"][~shut] >= 0.0).all()


def test_running_moments_are_of_all_rollouts_and_come_back_with_the_state():
    config = with_rewards(scale("running"), scale("running"))
    trainer, pipeline = toy_trainer(config, reward=Two())
    (first,) = trainer._collector.collect(0, quiet)
    (batch,) = trainer._collector.collect(1, quiet)
    seen = [first.rewards["large"].double(), batch.rewards["large"].double()]
    everything = torch.cat(seen)
    count, mean, squares = trainer.state().reward_moments["large"]
    assert count == len(everything)
    assert mean == pytest.approx(float(everything.mean()), rel=1e-12)
    assert squares / count == pytest.approx(float(everything.var(correction=0)), rel=1e-9)
    last = ((seen[1] - everything.mean()) / everything.std(correction=0)).float()
    small = batch.rewards["total"] - last
    assert float(small.mean().abs()) < 0.5  # what is left is the other reward, in its own unit
    resumed, _ = toy_trainer(config, reward=Two())
    resumed.restore(trainer.state())
    assert resumed.state().reward_moments == trainer.state().reward_moments
    torch.testing.assert_close(
        resumed._collector.collect(2, quiet)[0].rewards["total"],
        trainer._collector.collect(2, quiet)[0].rewards["total"],
        rtol=0.0,
        atol=0.0,
    )
    assert weights(pipeline).isfinite().all()


def media(scores: Tensor) -> Media:
    return Media(scores, {"large": scores, "small": -scores}, None)


@pytest.mark.parametrize("world", [2, 3])
def test_any_number_of_processes_has_one_unit(world):
    config = with_rewards(scale("running"), scale("running", 0.1))
    scores = torch.randn(12, generator=torch.Generator().manual_seed(4))
    prompt = torch.zeros(12, dtype=torch.int64)
    alone = Combination(config, Runtime())
    (whole,) = alone.combine([media(scores)], [prompt])

    def process(runtime: Any) -> tuple[Tensor, dict[str, list[float]]]:
        mine = Combination(config, runtime)
        rows = slice(runtime.rank * 12 // world, (runtime.rank + 1) * 12 // world)
        (part,) = mine.combine([media(scores[rows])], [prompt[rows]])
        return part.total, mine.moments

    parts = run_together(world, process)
    assert torch.equal(torch.cat([part for part, _ in parts]), whole.total)
    assert all(moments == alone.moments for _, moments in parts)


@pytest.mark.parametrize(
    ("small", "statistics", "words"),
    [
        ({}, "rollout", "statistics = rollout otherwise; use statistics=group"),
        ({"gate": {"at_least": 0.0}}, "group", r"rewards\.small\.gate: .* rewards\.large\.scale\.kind = group"),
    ],
)
def test_what_contradicts_a_group_scale_is_refused(small, statistics, words):
    with pytest.raises(ValueError, match=words):
        with_rewards(scale("group"), small, objective={"advantage": {"statistics": statistics}})
