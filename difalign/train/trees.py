"""The trees of a rollout, as the report draws them: every move of every row, and the leaves with what they scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from difalign.core.types import Plan
from difalign.objective.advantages import Advantages
from difalign.report.diagnostics import Leaf, Move, PromptTrees, Tree
from difalign.rollout.grouping import first_leaves
from difalign.rollout.trie import Trie, layout, merge
from difalign.train.collector import Batch

_MOST_LEAVES = 24  # of one prompt, unless a single start noise has more


@dataclass(frozen=True, slots=True)
class GrownTrees:
    """The trees of one prompt, and which samples of the batch their leaves are."""

    shown: PromptTrees
    rows: Tensor  # [L] int64 into ``final``, in order of the leaves' pictures


def grow_trees(
    batch: Batch,
    compared: Advantages,
    plans: Sequence[Plan],
    *,
    prompts: Mapping[int, int],
    most_leaves: int = _MOST_LEAVES,
) -> list[GrownTrees]:
    """The first trees of some prompts: as many start noises as have ``most_leaves`` leaves together, at least one.

    Args:
        batch: of one update.
        compared: the advantages of its edges.
        plans: what every start noise walked.
        prompts: row of the batch's condition -> place of the prompt in the whole update.
        most_leaves: of one prompt.
    """
    trie = merge(plans)
    leaves = sum(trie.leaf_rows)
    grown = []
    for prompt, place in prompts.items():
        roots = (batch.prompt_index == prompt).nonzero().flatten().tolist()
        chosen = roots[: max(1, most_leaves // leaves)]
        trees = [_tree(batch, compared, trie, root, first_picture=n * leaves) for n, root in enumerate(chosen)]
        rows = torch.tensor([root * leaves + leaf for root in chosen for leaf in range(leaves)], dtype=torch.int64)
        grown.append(GrownTrees(PromptTrees(batch.prompts[prompt], place, len(roots), tuple(trees)), rows))
    return grown


def _tree(batch: Batch, compared: Advantages, trie: Trie, root: int, *, first_picture: int) -> Tree:
    """The tree of one start noise; everything of it lies together, see ``difalign.rollout.engine``."""
    walks = batch.scored.trajectories
    steps, leaves = layout(trie).step, sum(trie.leaf_rows)
    edges = slice(root * len(steps), (root + 1) * len(steps))
    assert tuple(walks.step[edges].tolist()) == steps, "the plans are not those of the rollout"
    moves = _moves(trie, batch.scored.edge_reward[edges].tolist(), compared.advantage[edges].tolist())
    rows = slice(root * leaves, (root + 1) * leaves)
    scores = {name: values[rows].tolist() for name, values in batch.rewards.items()}
    above = {move.child: move for move in moves}
    kept = _kept_leaves(batch, compared)
    first = 1 + sum(edge.rows for level in trie.levels[:-1] for edge in level.edges)  # the nodes after the last step
    return Tree(
        moves=moves,
        leaves=tuple(
            Leaf(
                node=first + leaf,
                picture=first_picture + leaf,
                scores={name: values[leaf] for name, values in scores.items()},
                advantage=_last_advantage(above, first + leaf),
                kept=kept is None or root * leaves + leaf in kept,
            )
            for leaf in range(leaves)
        ),
    )


def _kept_leaves(batch: Batch, compared: Advantages) -> set[int] | None:
    """The samples that a selection keeps; None if everything counts."""
    if compared.extremes is None:
        return None
    return set(first_leaves(batch.scored.trajectories).cpu()[compared.extremes.rows].tolist())


def _moves(trie: Trie, rewards: Sequence[float], advantages: Sequence[float]) -> tuple[Move, ...]:
    """Every step of every row; nodes are numbered by level, then by node of the trie, then by row."""
    moves: list[Move] = []
    trained = iter(zip(rewards, advantages, strict=True))  # stored in the same order
    parents = [0]  # the number of the first row of every node of the level
    following = 1
    for step, level in enumerate(trie.levels):
        children = []
        for edge in level.edges:
            children.append(following)
            for row in range(edge.rows):
                reward, advantage = next(trained) if edge.entry.record else (None, None)
                moves.append(
                    Move(
                        step=step,
                        parent=parents[edge.parent] + row // edge.entry.fan_out,
                        child=following + row,
                        stochastic=edge.entry.noise_level > 0.0,
                        trained=edge.entry.record,
                        reward=reward,
                        advantage=advantage,
                    )
                )
            following += edge.rows
        parents = children
    return tuple(moves)


def _last_advantage(above: Mapping[int, Move], node: int) -> float | None:
    """The advantage of the trained move nearest to a leaf."""
    while node in above:
        move = above[node]
        if move.trained:
            return move.advantage
        node = move.parent
    return None
