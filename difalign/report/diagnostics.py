"""What one rollout says about the single steps of its chain, and the trees that its samples grew on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from difalign.report.words import number


@dataclass(frozen=True, slots=True)
class StepSignal:
    """What one trained step says, over all processes.

    The spread of rewards is over the whole rollout, the gradient that of its first update, taken before it while the
    policy is still the one that sampled; the ratios are those of the later updates, which are no longer on-policy.
    """

    step: int
    sigma: float
    sigma_next: float
    std: float  # of the noise that is added
    weight: float  # of the policy term
    edges: int  # recorded in the whole rollout
    reward_std: float | None  # within a group, mean over the groups
    seed_reward_std: float | None  # among edges of one start noise, mean over them; None where it has only one
    gradient_norm: float | None  # of the step's part of the policy term, without its weight
    weighted_gradient_norm: float | None  # with it
    clip_fraction: float | None  # None: there was no later update
    ratio_mean: float | None  # likewise
    ratio_std: float | None  # likewise


@dataclass(frozen=True, slots=True)
class Move:
    """One step of one row: from a node of a tree to the next; node 0 is the start noise."""

    step: int
    parent: int
    child: int
    stochastic: bool
    trained: bool
    reward: float | None  # mean over the leaves below; None where the move is not trained
    advantage: float | None  # likewise


@dataclass(frozen=True, slots=True)
class Leaf:
    """A sample that was scored."""

    node: int
    picture: int  # its number among the pictures of its prompt
    scores: Mapping[str, float]  # "total" and the components
    advantage: float | None  # of the last trained move that leads to it
    kept: bool = True  # False: a selection leaves it out


@dataclass(frozen=True, slots=True)
class Tree:
    """All that grew from one start noise."""

    moves: tuple[Move, ...]  # by step
    leaves: tuple[Leaf, ...]


@dataclass(frozen=True, slots=True)
class PromptTrees:
    """The first trees of one prompt."""

    prompt: str
    index: int  # place of the prompt in the first update
    start_noises: int  # of the prompt, those that are not shown among them
    trees: tuple[Tree, ...]


@dataclass(frozen=True, slots=True)
class Diagnostics:
    """The content of ``diagnostics/NNNNNN.json``; the pictures of the leaves lie beside it."""

    rollout: int
    sigma: tuple[float, ...]  # [T+1], the levels of the chain
    steps: tuple[StepSignal, ...]  # those that are trained, in order
    prompts: tuple[PromptTrees, ...] = ()


def diagnostics_to_json(diagnostics: Diagnostics) -> dict[str, Any]:
    """Plain containers; a move is a list in the order of its fields, for there are hundreds of them."""
    return {
        "rollout": diagnostics.rollout,
        "sigma": list(diagnostics.sigma),
        "steps": [asdict(step) for step in diagnostics.steps],
        "prompts": [_prompt_to_json(prompt) for prompt in diagnostics.prompts],
    }


def diagnostics_from_json(data: Mapping[str, Any]) -> Diagnostics:
    """What ``diagnostics_to_json`` wrote.

    Raises:
        ValueError: if a field is missing or of the wrong type.
    """
    try:
        return Diagnostics(
            rollout=int(data["rollout"]),
            sigma=tuple(float(sigma) for sigma in data["sigma"]),
            steps=tuple(_step_from_json(row) for row in data["steps"]),
            prompts=tuple(_prompt_from_json(row) for row in data["prompts"]),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not diagnostics: {type(error).__name__} {error}; write them with RunLog") from error


def _step_from_json(row: Mapping[str, Any]) -> StepSignal:
    return StepSignal(
        step=int(row["step"]),
        sigma=float(row["sigma"]),
        sigma_next=float(row["sigma_next"]),
        std=float(row["std"]),
        weight=float(row["weight"]),
        edges=int(row["edges"]),
        reward_std=number(row["reward_std"]),
        seed_reward_std=number(row["seed_reward_std"]),
        gradient_norm=number(row["gradient_norm"]),
        weighted_gradient_norm=number(row["weighted_gradient_norm"]),
        clip_fraction=number(row["clip_fraction"]),
        ratio_mean=number(row["ratio_mean"]),
        ratio_std=number(row["ratio_std"]),
    )


def _prompt_to_json(prompt: PromptTrees) -> dict[str, Any]:
    return {
        "prompt": prompt.prompt,
        "index": prompt.index,
        "start_noises": prompt.start_noises,
        "trees": [
            {
                "moves": [list(asdict(move).values()) for move in tree.moves],
                "leaves": [{**asdict(leaf), "scores": dict(leaf.scores)} for leaf in tree.leaves],
            }
            for tree in prompt.trees
        ],
    }


def _prompt_from_json(row: Mapping[str, Any]) -> PromptTrees:
    return PromptTrees(
        prompt=str(row["prompt"]),
        index=int(row["index"]),
        start_noises=int(row["start_noises"]),
        trees=tuple(
            Tree(
                moves=tuple(_move_from_json(move) for move in tree["moves"]),
                leaves=tuple(_leaf_from_json(leaf) for leaf in tree["leaves"]),
            )
            for tree in row["trees"]
        ),
    )


def _move_from_json(row: Sequence[Any]) -> Move:
    step, parent, child, stochastic, trained, reward, advantage = row
    return Move(int(step), int(parent), int(child), bool(stochastic), bool(trained), number(reward), number(advantage))


def _leaf_from_json(row: Mapping[str, Any]) -> Leaf:
    return Leaf(
        node=int(row["node"]),
        picture=int(row["picture"]),
        scores={str(name): float(score) for name, score in row["scores"].items()},
        advantage=number(row["advantage"]),
        kept=bool(row["kept"]),
    )
