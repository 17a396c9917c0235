"""Diagnostics of a made-up run: a trunk that branches at its first steps, two prompts."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

import numpy as np
from numpy.typing import NDArray

from difalign.report.diagnostics import Diagnostics, Leaf, Move, PromptTrees, StepSignal, Tree

SIGMA = (1.0, 0.8, 0.6, 0.3, 0.0)


def signal(step: int) -> StepSignal:
    """Rewards spread less the later the step; the gradient grows, and half as much with weights."""
    return StepSignal(
        step=step,
        sigma=SIGMA[step],
        sigma_next=SIGMA[step + 1],
        std=0.7 - 0.2 * step,
        weight=1.5 - 0.375 * step,
        edges=12,
        reward_std=0.5 - 0.1 * step,
        seed_reward_std=0.4 - 0.15 * step,
        gradient_norm=0.01 * 2.0**step,
        weighted_gradient_norm=0.015 * 2.0 ** (0.5 * step),
        clip_fraction=0.1 * step,
        ratio_mean=1.0,
        ratio_std=1e-4 * (step + 1),
    )


def branched(at: Sequence[int], *, children: int, steps: int = 4, first_picture: int = 0) -> Tree:
    """A deterministic trunk with ``children`` explorations at each step of ``at``."""
    numbers = count(1)
    moves: list[Move] = []
    ends: list[tuple[int, float]] = []
    trunk = 0
    live: list[tuple[int, float]] = []  # explorations on their way: node, advantage
    for step in range(steps):
        grown = []
        for node, advantage in live:
            child = next(numbers)
            moves.append(Move(step, node, child, False, False, None, None))
            grown.append((child, advantage))
        if step in at:
            for place in range(children):
                child, advantage = next(numbers), float(place - (children - 1) / 2)
                moves.append(Move(step, trunk, child, True, True, 0.5 + 0.1 * advantage, advantage))
                grown.append((child, advantage))
        live = grown
        if step < max(at):
            child = next(numbers)
            moves.append(Move(step, trunk, child, False, False, None, None))
            trunk = child
    ends = live
    leaves = tuple(
        Leaf(node, first_picture + place, {"total": 0.5 + 0.1 * advantage, "strict": 0.0}, advantage)
        for place, (node, advantage) in enumerate(ends)
    )
    return Tree(tuple(moves), leaves)


def walk(leaf: float, *, picture: int, steps: int = 4) -> Tree:
    """A single walk, trained at every step but the last."""
    moves = tuple(Move(s, s, s + 1, True, s + 1 < steps, *((leaf, leaf) if s + 1 < steps else (None, None)))
                  for s in range(steps))  # fmt: skip
    return Tree(moves, (Leaf(steps, picture, {"total": leaf}, leaf),))


def seen_at(rollout: int) -> Diagnostics:
    """Three trained steps; one prompt with a tree, one with eight walks."""
    tree = branched((0, 1, 2), children=3)
    walks = tuple(walk(0.1 * picture - 0.3, picture=picture) for picture in range(8))
    prompts = (PromptTrees("a red <circle>", 0, 4, (tree,)), PromptTrees("two blue squares", 1, 8, walks))
    return Diagnostics(rollout, SIGMA, tuple(signal(step) for step in range(3)), prompts)


def leaf_pictures(seen: Diagnostics, *, size: int = 16) -> list[NDArray[np.float64]]:
    """Random pixels for every leaf."""
    rng = np.random.default_rng(seen.rollout)
    counts = [sum(len(tree.leaves) for tree in prompt.trees) for prompt in seen.prompts]
    return [rng.random((leaves, 3, size, size)) for leaves in counts]
