"""DDPO on a diffusion toy with a known optimum, its two losses, its histories, and the normalised ratio."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from difalign.core.gaussian import mean_over_latent
from difalign.objective.advantages import Advantages, moments, standardised_advantages
from difalign.objective.prompt_history import PromptHistory
from difalign.rollout.replay import edge_log_prob
from difalign.train.collector import Batch
from difalign.train.partition import partition
from difalign.train.policy_gradient import PolicyGradient
from difalign.train.state import read_trainer_state
from tests.train.ddim_toy import ddpo_config, ddpo_trainer, outlook
from tests.train.small_runs import run_toy
from tests.train.test_resume import assert_same_end, config_of, run_until
from tests.train.toy_run import quiet, toy_config, toy_trainer, weights

HISTORY = {"statistics": "prompt_history", "history": {"buffer_size": 32, "min_count": 16}, "eps": 1e-6}
VARIANTS: dict[str, dict[str, Any]] = {
    "importance sampling": {"surrogate": "clipped", "advantage": HISTORY},
    "score function": {"surrogate": "score_function", "advantage": HISTORY},
    "score function against the rollout": {
        "surrogate": "score_function",
        "advantage": {"statistics": "rollout", "eps": 1e-8},
    },
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_learns_the_optimum(variant: str) -> None:
    trainer, pipeline = ddpo_trainer(ddpo_config(**VARIANTS[variant]))
    before = outlook(pipeline)
    assert before.reward == pytest.approx(before.best - 0.64, abs=1e-5)
    for index in range(40):
        trainer.run(index, quiet)
    after = outlook(pipeline)
    assert after.best == pytest.approx(before.best, abs=1e-6)
    assert after.best - after.reward < 0.02


def test_on_policy_the_two_losses_make_one_update() -> None:
    ended = []
    for surrogate in ("clipped", "score_function"):
        trainer, pipeline = toy_trainer(toy_config(objective={"surrogate": surrogate}))
        rows = [trainer.run(index, quiet)[0] for index in range(2)]
        assert all(row["ratio_max_deviation"] == 0.0 for row in rows)
        ended.append((weights(pipeline), rows))
    torch.testing.assert_close(ended[0][0], ended[1][0], rtol=1e-6, atol=1e-8)
    assert ended[0][1][0]["grad_norm"] == pytest.approx(ended[1][1][0]["grad_norm"], rel=1e-6)
    assert ended[0][1][0]["policy_loss"] != ended[1][1][0]["policy_loss"]


# --- what rewards are compared with --------------------------------------------------------------------------------


def by_hand(batches: list[Batch], history: PromptHistory) -> list[Tensor]:
    """The advantages of a plain plan's edges, sample by sample."""
    totals = [batch.rewards["total"] for batch in batches]
    whole, expected = moments(torch.cat(totals)), []
    texts = [[batch.prompts[int(batch.prompt_index[r])] for r in range(len(batch.prompt_index))] for batch in batches]
    for names, total in zip(texts, totals, strict=True):
        for name, reward in zip(names, total.tolist(), strict=True):
            history.add(name, [reward])
    for batch, names, total in zip(batches, texts, totals, strict=True):
        measures = [history.measure(name, otherwise=whole) for name in names]
        leaf = standardised_advantages(total, torch.arange(len(names)), measures, eps=1e-6).advantage
        expected.append(leaf[batch.scored.trajectories.root])
    return expected


def collected(trainer: PolicyGradient, index: int) -> tuple[list[Batch], list[Advantages]]:
    batches = trainer._collector.collect(index, quiet)
    return batches, trainer._comparison.advantages(batches)


def test_advantages_are_those_of_the_history() -> None:
    options = {**HISTORY, "history": {"buffer_size": 9, "min_count": 5}}
    config = toy_config(
        sampling={"prompts_per_update": 3, "samples_per_prompt": 4},
        objective={"advantage": options},
        training={"updates_per_rollout": 2},
    )
    trainer, _ = toy_trainer(config)
    history = PromptHistory(buffer_size=9, min_count=5)
    for index in range(5):  # twelve prompts: each comes back in the third rollout or the fourth
        batches, advantages = collected(trainer, index)
        for mine, expected in zip(advantages, by_hand(batches, history), strict=True):
            torch.testing.assert_close(mine.advantage, expected, atol=1e-6, rtol=0)
    assert list(trainer.state().prompt_rewards) == [history.rewards]
    assert {len(rewards) for rewards in history.rewards.values()} == {8, 9}


def test_against_the_rollout_all_samples_of_all_updates_are_one_group() -> None:
    config = toy_config(
        sampling={"prompts_per_update": 3, "samples_per_prompt": 1},
        objective={"advantage": {"statistics": "rollout", "eps": 1e-8}},
        training={"updates_per_rollout": 4},
    )
    trainer, _ = toy_trainer(config)
    batches, advantages = collected(trainer, 0)
    rewards = torch.cat([batch.rewards["total"] for batch in batches]).double()
    expected = (rewards - rewards.mean()) / (rewards.std(correction=0) + 1e-8)
    found = torch.cat(
        [a.advantage[batch.scored.trajectories.step == 0] for a, batch in zip(advantages, batches, strict=True)]
    )
    torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=0)
    assert not trainer.state().prompt_rewards


def test_a_resumed_run_goes_on_with_the_history(tmp_path: Path) -> None:
    """Eight prompts, two a rollout: they come back in the fifth, which is after the kill."""
    objective = {"clip_range": 0.01, "advantage": {**HISTORY, "history": {"buffer_size": 8, "min_count": 6}}}
    run_toy(config_of(tmp_path / "whole", objective=objective))
    run_until(tmp_path / "run", 4, objective=objective)
    newest = sorted((tmp_path / "run" / "checkpoints").iterdir())[-1]
    (kept,) = read_trainer_state(newest).prompt_rewards
    assert len(kept) >= 6
    assert {len(rewards) for rewards in kept.values()} == {4}
    run_toy(config_of(tmp_path / "run", objective=objective, resume="latest"))
    assert_same_end(tmp_path / "run", tmp_path / "whole")


def test_weights_that_go_back_take_the_history_with_them() -> None:
    trainer, _ = toy_trainer(toy_config(objective={"advantage": HISTORY}))
    trainer.run(0, quiet)
    kept = trainer.state().prompt_rewards
    trainer.run(1, quiet)
    assert trainer.state().prompt_rewards != kept
    trainer.return_to(replace(trainer.state(), prompt_rewards=kept))
    assert trainer.state().prompt_rewards == kept


# --- GRPO-Guard's ratio --------------------------------------------------------------------------------------------


def moved_by_one_update(ratio: str) -> tuple[PolicyGradient, Batch, Advantages, Tensor]:
    """A trainer whose weights are one update away from those that sampled; and the means under those."""
    config = toy_config(objective={"ratio": ratio, "clip_range": 0.5}, training={"updates_per_rollout": 2})
    trainer, pipeline = toy_trainer(config)
    batches, advantages = collected(trainer, 0)
    batch = batches[1]
    with torch.no_grad():
        old = edge_log_prob(
            pipeline,
            batch.scored.trajectories,
            torch.arange(len(batch.scored.trajectories.step)),
            condition=batch.condition,
            prompt_index=batch.prompt_index,
            grid=trainer._grid,
        )
    first = partition(batches, advantages, config, trainer._runtime, update=0)[0]
    row = trainer._update(0, first, on_policy=True, report=quiet)
    assert row["ratio_max_deviation"] == 0.0
    return trainer, batch, advantages[1], old.step.mean


def ratios(ratio: str) -> tuple[Tensor, dict[str, Tensor]]:
    """The log-ratio that the trainer takes, and each kind in closed form from means and the noise that was drawn."""
    trainer, batch, advantages, old_mean = moved_by_one_update(ratio)
    walks, rows = batch.scored.trajectories, torch.arange(len(batch.scored.trajectories.step))
    weights_by_step = trainer._loss.step_weights(batch)
    part = trainer._loss.chunk(batch, advantages.advantage, rows, weights=weights_by_step, total=len(rows))
    with torch.no_grad():
        new = edge_log_prob(
            trainer._loss._pipeline,
            walks,
            rows,
            condition=batch.condition,
            prompt_index=batch.prompt_index,
            grid=trainer._grid,
        ).step
    noise, shift = (walks.x_next - old_mean) / new.std, (new.mean - old_mean) / new.std
    return part.surrogate.ratio.log(), {
        "plain": mean_over_latent(shift * noise - shift.square() / 2),
        "ratio_norm": mean_over_latent((new.mean - old_mean) * noise),
    }


@pytest.mark.parametrize("ratio", ["plain", "ratio_norm"])
def test_the_ratio_that_is_asked_for_reaches_the_loss(ratio: str) -> None:
    found, expected = ratios(ratio)
    torch.testing.assert_close(found, expected[ratio], atol=2e-6, rtol=1e-3)
    assert float((expected["plain"] - expected["ratio_norm"]).abs().max()) > 1e-4


def test_with_the_normalised_ratio_the_first_update_weighs_by_the_std() -> None:
    norms = {}
    for ratio in ("plain", "ratio_norm"):
        row = toy_trainer(toy_config(objective={"ratio": ratio}))[0].run(0, quiet)[0]
        assert row["ratio_max_deviation"] == 0.0
        norms[ratio] = row["grad_norm"]
    assert norms["ratio_norm"] < 0.9 * norms["plain"]
