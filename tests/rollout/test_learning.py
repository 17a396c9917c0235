"""Every kind of plan learns a toy with a known optimum through the real engine, replay, groups and objective.

Eight-dimensional Gaussian data with its exact velocity, a small perceptron on top, and a quadratic reward whose
optimum is 0. The untrained flow scores about -0.94. The toy proves signs, credit and gradients; it says nothing
about images.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import pytest
import torch
from torch import Tensor

from difalign.core.protocols import Process
from difalign.core.types import Plan, Trajectories
from difalign.objective.advantages import group_advantages, scaled_advantage
from difalign.objective.surrogate import clipped_surrogate
from difalign.objective.weights import WeightRule, noise_aware, step_weights, uniform
from difalign.process.flow import FlowProcess, RenoiseProcess
from difalign.process.rules import dance_rule
from difalign.rollout import plans, windows
from difalign.rollout.engine import rollout
from difalign.rollout.grouping import edge_rewards, group_ids
from difalign.rollout.replay import edge_log_prob
from tests.toys import PerceptronPolicy, ToyPipeline

N = 10
PROMPTS = 8
TARGET = torch.tensor([0.8, -0.8] * 4)

FLOW = FlowProcess()

PlansOf = Callable[[int], tuple[Plan, ...]]  # epoch -> plans


@dataclass(frozen=True)
class Recipe:
    """One method as data."""

    plans_of: PlansOf
    seeds: int  # roots a prompt
    by: Literal["prompt", "seed"] = "prompt"
    process: Process = FLOW
    weight: WeightRule = uniform
    epochs: int = 20  # enough to pass the threshold; the slow test runs all of them for longer


def every(plan: Plan) -> PlansOf:
    return lambda epoch: (plan,)


def sampled(epoch: int) -> tuple[Plan, ...]:
    return plans.branch(N, 0.7, children=6, at=plans.sampled_steps(N, 3, seed=0, epoch=epoch))


def random_window(epoch: int) -> tuple[Plan, ...]:
    return (plans.window(N, 0.7, start=windows.random_start(0, epoch, low=0, high=5, size=3), size=3),)


def sliding_window(epoch: int) -> tuple[Plan, ...]:
    stop = N - 2
    start = windows.progressive_start(epoch + 1, stop=stop, dwell=windows.constant_dwell(5))
    return (plans.window(N, 0.7, start=start, size=windows.clipped_size(start, size=4, stop=stop)),)


EVERY_STEP = plans.branch(N, 0.7, children=6, at=plans.all_steps(N))
EARLY = plans.branch(N, 0.7, children=6, at=plans.early_steps(N, 3))

RECIPES = {
    "plain": Recipe(every(plans.plain(N, 0.7)), seeds=24),
    "plain, shared latents": Recipe(every(plans.plain(N, 0.7, children=6)), seeds=4, by="seed"),
    "plain, dance": Recipe(every(plans.plain(N, 0.3)), seeds=24, process=FlowProcess(rule=dance_rule), epochs=40),
    "plain, cps": Recipe(every(plans.plain(N, 0.7)), seeds=24, process=RenoiseProcess(), epochs=40),
    "random window": Recipe(random_window, seeds=24),
    "sliding window": Recipe(sliding_window, seeds=24),
    "branch early, prompt groups": Recipe(lambda epoch: EARLY, seeds=4),
    "branch early, seed groups": Recipe(lambda epoch: EARLY, seeds=4, by="seed"),
    "branch sampled, seed groups": Recipe(sampled, seeds=4, by="seed"),
    "branch all, prompt groups": Recipe(lambda epoch: EVERY_STEP, seeds=4),
    "branch all, seed groups, weighted": Recipe(lambda epoch: EVERY_STEP, seeds=4, by="seed", weight=noise_aware),
    "split": Recipe(every(plans.split(N, 0.7, at=3, children=6)), seeds=4, by="seed"),
    "cascade": Recipe(every(plans.cascade(N, 0.7, at=(0, 2, 4), children=3)), seeds=1, by="seed"),
}


def reward(final: Tensor) -> Tensor:
    return -(final - TARGET).square().mean(dim=1)


def sample(pipeline: ToyPipeline, made: tuple[Plan, ...], *, seeds: int, epoch: int) -> Trajectories:
    roots = PROMPTS * seeds
    return rollout(
        pipeline,
        made,
        condition=pipeline.encode(["0.0"] * PROMPTS),
        prompt_index=torch.arange(PROMPTS).repeat_interleave(seeds),
        root_seeds=range(epoch * roots, (epoch + 1) * roots),
        micro_batch=4096,
    )


@functools.cache
def train(recipe: Recipe, epochs: int) -> list[float]:
    """The mean ODE reward before training and after every 20 epochs."""
    torch.manual_seed(0)
    pipeline = ToyPipeline(network=PerceptronPolicy(8), process=recipe.process)
    optimizer = torch.optim.AdamW(pipeline.network.parameters(), lr=3e-3)
    scores = [evaluate(pipeline)]
    for epoch in range(epochs):
        improve(pipeline, optimizer, recipe, epoch)
        if (epoch + 1) % 20 == 0:
            scores.append(evaluate(pipeline))
    return scores


def evaluate(pipeline: ToyPipeline) -> float:
    trajectories = sample(pipeline, (plans.deterministic(N),), seeds=128, epoch=-1)
    return float(reward(trajectories.final).mean())


def improve(pipeline: ToyPipeline, optimizer: torch.optim.Optimizer, recipe: Recipe, epoch: int) -> None:
    """One rollout and two optimiser updates, each on half of the roots."""
    prompt_index = torch.arange(PROMPTS).repeat_interleave(recipe.seeds)
    trajectories = sample(pipeline, recipe.plans_of(epoch), seeds=recipe.seeds, epoch=epoch)
    groups = group_ids(trajectories, prompt_index, by=recipe.by)
    rewards = edge_rewards(reward(trajectories.final), trajectories)
    advantage = scaled_advantage(group_advantages(rewards, groups).advantage, clip=5.0)
    grid = pipeline.grid(N)
    weight = step_weights(recipe.weight, recipe.process, grid, trajectories.step.unique(), noise_level=0.7)
    for rows in torch.randperm(len(trajectories.step)).chunk(2):
        edges = edge_log_prob(
            pipeline,
            trajectories,
            rows,
            condition=pipeline.encode(["0.0"] * PROMPTS),
            prompt_index=prompt_index,
            grid=grid,
        )
        surrogate = clipped_surrogate(
            edges.log_prob,
            trajectories.log_prob[rows],
            advantage[rows],
            clip_range=1e-2,
            weight=weight[trajectories.step[rows]],
        )
        optimizer.zero_grad()
        surrogate.loss.mean().backward()
        torch.nn.utils.clip_grad_norm_(pipeline.network.parameters(), 1.0)
        optimizer.step()


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())
def test_every_plan_learns(recipe: Recipe) -> None:
    scores = train(recipe, recipe.epochs)
    assert -1.0 < scores[0] < -0.9
    assert scores[-1] > -0.2, scores


def test_branching_learns_at_least_as_fast_as_plain() -> None:
    plain, branched = RECIPES["plain"], RECIPES["branch all, seed groups, weighted"]
    assert train(branched, branched.epochs)[1] >= train(plain, plain.epochs)[1]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())
def test_every_plan_reaches_the_optimum(recipe: Recipe) -> None:
    scores = train(recipe, 60)
    assert scores[-1] > -0.05, scores
