"""TempFlow-GRPO through the trainer (arXiv 2508.04324): branches, groups of a start noise, weights and KL together."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from difalign.core.config import RunConfig
from difalign.train.collector import Batch
from tests.sections import lay_over
from tests.toys import PerceptronPolicy
from tests.train.cut_short import assert_same_end, config_of, run_until
from tests.train.small_runs import run_toy
from tests.train.toy_run import DIMENSIONS, TARGET, Constant, quiet, toy_config, toy_trainer, weights

STEPS, CHILDREN, SEEDS, PROMPTS = 6, 4, 2, 3
BETA = 0.5


def config(**sections: Any) -> RunConfig:
    """The whole method; ``sections`` are laid over it."""
    method = {
        "sampling": {
            "steps": STEPS,
            "plan": {"kind": "branch", "mode": "all", "children": CHILDREN},
            "prompts_per_update": PROMPTS,
            "samples_per_prompt": SEEDS,
        },
        "objective": {
            "advantage": {"group_by": "seed"},
            "weight": "noise_aware",
            "kl": {"kind": "gaussian", "beta": BETA},
        },
    }
    return toy_config(**lay_over(method, sections))


def moved() -> nn.Module:
    """A policy that is not the reference any more."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = PerceptronPolicy(DIMENSIONS)
        nn.init.normal_(network.head.weight, std=0.2)
    return network


@pytest.mark.golden
@pytest.mark.parametrize(
    ("mode", "columns", "forwards"), [({"mode": "all"}, 9, 279), ({"mode": "early_k", "k": 3}, 3, 147)], ids=str
)
def test_published_counts(mode: dict[str, Any], columns: int, forwards: int) -> None:
    """Ten steps, six children: what one start noise costs, and the rows and rewards that it gives."""
    plan = {"kind": "branch", "children": 6, **mode}
    trainer, pipeline = toy_trainer(config(sampling={"steps": 10, "plan": plan}, objective={"kl": {"kind": "none"}}))
    row = trainer.run(0, quiet)[0]
    roots = PROMPTS * SEEDS
    assert row["denoiser_forwards"] == roots * forwards
    assert row["reward_calls"] == row["rows"] == roots * 6 * columns
    assert sum(pipeline.batches) == roots * (forwards + 6 * columns)  # each child is evaluated once in training


def by_hand(batch: Batch, network: nn.Module, reference: nn.Module, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """The policy term (REINFORCE) and the mean KL of the first update, from the formulas alone, in float64."""
    walks = batch.scored.trajectories
    offset = torch.tensor([float(text) for text in batch.prompts], dtype=torch.float64)
    reward = -(walks.final.double() - TARGET).square().mean(dim=1).reshape(-1, STEPS - 1, CHILDREN)
    spread = reward.std(dim=2, correction=0, keepdim=True)
    advantage = ((reward - reward.mean(dim=2, keepdim=True)) / (spread + 1e-4)).transpose(0, 1)  # [column, root, child]
    policy, kl = torch.zeros(()), torch.zeros(())
    stds = [_std(sigma, step) for step in range(STEPS - 1)]
    for step, std in enumerate(stds):
        rows = walks.step == step
        x, x_next = walks.x[rows].double(), walks.x_next[rows].double()
        of_prompt = offset[batch.prompt_index[walks.root[rows]]]
        time = sigma[step].expand(len(x))
        mean, old = (_mean(x, net(x, time, of_prompt), sigma, step) for net in (network, reference))
        density = torch.distributions.Normal(mean, std).log_prob(x_next).mean(dim=1)
        weight = std / (sum(stds) / len(stds))
        policy = policy - weight * (advantage[step].flatten() * density).sum()
        kl = kl + ((mean - old).square() / (2 * std**2)).mean(dim=1).sum()
    return policy / len(walks.step), kl / len(walks.step)


def _diffusion(sigma: Tensor, step: int) -> float:
    finite = sigma[1] if step == 0 else sigma[step]
    return 0.7 * math.sqrt(sigma[step] / (1 - finite))


def _std(sigma: Tensor, step: int) -> float:
    return _diffusion(sigma, step) * math.sqrt(sigma[step] - sigma[step + 1])


def _mean(x: Tensor, v: Tensor, sigma: Tensor, step: int) -> Tensor:
    dt, s, g = sigma[step + 1] - sigma[step], sigma[step], _diffusion(sigma, step)
    return x + (v + g**2 / (2 * s) * (x + (1 - s) * v)) * dt


def test_the_first_update_is_the_published_formula() -> None:
    """Trunk, children, advantage of a start noise and step, weight, KL: the whole chain against a few lines."""
    trainer, pipeline = toy_trainer(config(), network=moved())
    (batch,) = trainer._collector.collect(0, quiet)
    (advantages,) = trainer._comparison.advantages([batch])
    rows = torch.arange(len(batch.scored.trajectories.step))
    table = trainer._loss.step_weights(batch)
    part = trainer._loss.chunk(batch, advantages.advantage, rows, weights=table, total=len(rows))
    ours = torch.autograd.grad(part.loss, list(pipeline.network.parameters()))

    network = copy.deepcopy(pipeline.network).double()
    with pipeline.reference():
        reference = copy.deepcopy(pipeline.network).double()
    policy, kl = by_hand(batch, network, reference, pipeline.grid(STEPS).sigma.double())
    expected = torch.autograd.grad(policy + BETA * kl, list(network.parameters()))
    for mine, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine.double(), other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))
    kl = float(kl.detach())
    assert kl > 1e-3  # both terms are there
    assert float(policy.detach().abs()) > 1e-3

    row = trainer.run(0, quiet)[0]
    assert row["ratio_max_deviation"] == 0.0
    assert row["kl"] == pytest.approx(kl, rel=1e-4)
    assert row["policy_loss"] == pytest.approx(0.0, abs=1e-6)  # minus the weighted mean of zero-mean advantages
    assert row["loss"] == pytest.approx(BETA * row["kl"], abs=1e-6)


@pytest.mark.parametrize("by", ["seed", "prompt"])
def test_groups_are_of_one_step_and_of_what_is_asked(by: str) -> None:
    trainer, _ = toy_trainer(config(objective={"advantage": {"group_by": by}}))
    (batch,) = trainer._collector.collect(0, quiet)
    (advantages,) = trainer._comparison.advantages([batch])
    of_root = advantages.advantage.double().reshape(PROMPTS, SEEDS, STEPS - 1, CHILDREN)
    group = (3,) if by == "seed" else (1, 3)
    assert (of_root.mean(dim=group).abs() < 1e-6).all()
    assert advantages.size.unique().tolist() == [CHILDREN if by == "seed" else CHILDREN * SEEDS]
    if by == "prompt":  # a start noise may be better than the others
        assert (of_root.mean(dim=3).abs() > 1e-3).any()


def test_weights_leave_the_divergence_alone() -> None:
    """Without advantage the loss and its gradient are those of the KL, to the last bit, whatever the weights."""
    rows = []
    for weight in ("uniform", "noise_aware"):
        made = config(objective={"weight": weight, "filter_zero_variance": False})
        trainer, pipeline = toy_trainer(made, network=moved(), reward=Constant())
        row = trainer.run(0, quiet)[0]
        assert row["kl"] > 1e-3
        assert row["loss"] == pytest.approx(BETA * row["kl"], rel=1e-5)
        rows.append((row["loss"], row["grad_norm"], weights(pipeline).tolist()))
    assert rows[0] == rows[1]


@pytest.mark.parametrize("micro_batch", [7, 1000])
def test_micro_batches_do_not_change_the_update(micro_batch: int) -> None:
    reference, pipeline = toy_trainer(config(), network=moved())
    sizes = {"micro_batch": micro_batch}
    other, split = toy_trainer(config(training=sizes, sampling=sizes), network=moved())
    for index in range(2):
        reference.run(index, quiet)
        other.run(index, quiet)
    torch.testing.assert_close(weights(split), weights(pipeline), rtol=1e-4, atol=1e-6)


def test_one_child_a_start_noise_is_flow_grpo_fast() -> None:
    """K = 1 at one step among prompt groups is a window of one step: the same update, to the last bit."""
    shared = {"samples_per_prompt": 6}
    branched = {**shared, "plan": {"kind": "branch", "mode": "early_k", "k": 1, "children": 1}}
    window = {**shared, "plan": {"kind": "window", "strategy": "fixed", "size": 1, "low": 0, "high": 1}}
    ended = []
    for sampling in (branched, window):
        trainer, pipeline = toy_trainer(config(sampling=sampling, objective={"advantage": {"group_by": "prompt"}}))
        for index in range(2):
            trainer.run(index, quiet)
        ended.append(weights(pipeline))
    assert torch.equal(*ended)


def test_it_learns_the_optimum() -> None:
    made = config(
        sampling={"prompts_per_update": 6},
        objective={"kl": {"kind": "gaussian", "beta": 0.004}},
        training={"rollouts": 30},
    )
    trainer, _ = toy_trainer(made)
    rewards = [trainer.run(index, quiet)[0]["reward"] for index in range(30)]
    assert sum(rewards[:3]) / 3 < -0.7
    assert sum(rewards[-3:]) / 3 > -0.2


def test_a_resumed_run_branches_where_it_would_have(tmp_path: Path) -> None:
    """Branch steps are drawn anew for every rollout; a run that is cut short draws the same ones when it goes on."""
    sections = {
        "sampling": {"plan": {"kind": "branch", "mode": "sampled_k", "k": 1, "children": 3}},
        "objective": {"weight": "noise_aware", "advantage": {"group_by": "seed"}},
    }
    run_toy(config_of(tmp_path / "whole", **sections))
    run_until(tmp_path / "cut", 3, **sections)
    run_toy(config_of(tmp_path / "cut", resume="latest", **sections))
    assert_same_end(tmp_path / "cut", tmp_path / "whole")
