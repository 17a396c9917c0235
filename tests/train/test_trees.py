"""Trees as they grew: every row the network saw is a move, and every reward is the mean of the leaves below it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from difalign.build.plans import build_plans
from difalign.core.config import RunConfig
from difalign.objective.advantages import Advantages, group_advantages
from difalign.objective.selection import extremes
from difalign.report.diagnostics import Tree
from difalign.rollout.trie import count_edges, count_leaves
from difalign.train.collector import Batch, Collector
from difalign.train.runtime import Runtime
from difalign.train.trees import grow_trees
from tests.train.toy_run import PROMPTS, Quadratic, quiet, toy_config, toy_trainer

PLANS = {
    "plain": ({"kind": "plain", "last_step_noise": False}, 3),
    "window": ({"kind": "window", "size": 2, "low": 1, "high": 4, "strategy": "fixed"}, 3),
    "branch": ({"kind": "branch", "children": 3}, 1),
    "split": ({"kind": "split", "at": 2, "children": 3}, 2),
    "cascade": ({"kind": "cascade", "at": [0, 2, 3], "children": 2, "last_step_noise": False}, 1),
}


def planned(kind: str) -> RunConfig:
    plan, noises = PLANS[kind]
    group = {"advantage": {"group_by": "seed"}} if noises == 1 else {}
    return toy_config(
        sampling={"plan": plan, "samples_per_prompt": noises, "prompts_per_update": 2}, objective={**group}
    )


def collected(config: RunConfig) -> Batch:
    _, pipeline = toy_trainer(config)
    collector = Collector(
        pipeline,
        Quadratic(),
        PROMPTS,
        plans=lambda rollout: build_plans(config, rollout=rollout),
        config=config,
        runtime=Runtime(),
        grid=pipeline.grid(config.sampling.steps),
    )
    return collector.collect(0, quiet)[0]


def compared(batch: Batch) -> Advantages:
    return group_advantages(batch.scored.edge_reward, batch.scored.group)


def leaves_below(tree: Tree, node: int) -> Iterator[float]:
    """Rewards of the leaves under a node, by walking down."""
    yield from (leaf.scores["total"] for leaf in tree.leaves if leaf.node == node)
    for move in tree.moves:
        if move.parent == node:
            yield from leaves_below(tree, move.child)


@pytest.mark.parametrize("kind", PLANS)
def test_trees_are_whole_and_carry_the_rewards_below(kind: str) -> None:
    config = planned(kind)
    batch, plans = collected(config), build_plans(config, rollout=0)
    grown = grow_trees(batch, compared(batch), plans, prompts={0: 4, 1: 7})
    assert [item.shown.index for item in grown] == [4, 7]
    assert [item.shown.prompt for item in grown] == list(batch.prompts)
    seen = sorted(row for item in grown for row in item.rows.tolist())
    assert seen == list(range(batch.scored.trajectories.final.shape[0]))
    for item in grown:
        for tree in item.shown.trees:
            assert {move.step for move in tree.moves} == set(range(config.sampling.steps))
            assert len({move.child for move in tree.moves}) == len(tree.moves)
            assert len(tree.leaves) == count_leaves(plans)
            trained = [move for move in tree.moves if move.trained]
            assert len(trained) == count_edges(plans)
            assert all(move.stochastic for move in trained)
            for move in trained:
                below = list(leaves_below(tree, move.child))
                assert move.reward == pytest.approx(sum(below) / len(below), rel=1e-5)
        pictures = [leaf.picture for tree in item.shown.trees for leaf in tree.leaves]
        assert pictures == list(range(item.rows.numel()))
        rewards = [leaf.scores["total"] for tree in item.shown.trees for leaf in tree.leaves]
        assert rewards == batch.rewards["total"][item.rows].tolist()


def test_leaf_has_the_advantage_of_its_last_trained_step() -> None:
    batch, plans = collected(planned("cascade")), build_plans(planned("cascade"), rollout=0)
    numbers = torch.arange(batch.scored.trajectories.step.numel(), dtype=torch.float32)
    numbered = replace(compared(batch), advantage=numbers)
    tree = grow_trees(batch, numbered, plans, prompts={0: 0})[0].shown.trees[0]
    walks = batch.scored.trajectories
    for number, leaf in enumerate(tree.leaves):
        above = walks.descent[0, walks.descent[1] == number]
        assert leaf.advantage == above[walks.step[above].argmax()]


@pytest.mark.parametrize(("most", "shown"), [(1, 1), (2, 2), (24, 3)])
def test_only_so_many_start_noises_are_kept(most: int, shown: int) -> None:
    config = planned("plain")
    batch = collected(config)
    item = grow_trees(batch, compared(batch), build_plans(config, rollout=0), prompts={1: 0}, most_leaves=most)[0]
    assert (len(item.shown.trees), item.shown.start_noises) == (shown, 3)
    assert batch.prompts[1] == item.shown.prompt


def test_what_a_selection_leaves_out_is_marked() -> None:
    """The best and the worst of every group are kept, and nothing else."""
    batch, plans = collected(planned("branch")), build_plans(planned("branch"), rollout=0)
    found = compared(batch)
    assert all(leaf.kept for leaf in grow_trees(batch, found, plans, prompts={0: 0})[0].shown.trees[0].leaves)
    found = replace(found, extremes=extremes(found.advantage, batch.scored.group))
    leaves = grow_trees(batch, found, plans, prompts={0: 0})[0].shown.trees[0].leaves
    for start in range(0, len(leaves), 3):  # three children a branch step
        children = leaves[start : start + 3]
        rewards = sorted(leaf.scores["total"] for leaf in children)
        assert [leaf.kept for leaf in children] == [leaf.scores["total"] != rewards[1] for leaf in children]
