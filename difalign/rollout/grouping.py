"""From rewards of leaves to rewards of edges, and which edges are compared with one another."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from difalign.core.types import Trajectories

GroupBy = Literal["prompt", "seed"]


def edge_rewards(leaf_rewards: Tensor, trajectories: Trajectories) -> Tensor:
    """The reward of every edge: the mean over the leaves that descend from it, [M] float32.

    An edge of a single walk gets its leaf's reward; an inner edge of a tree gets the mean of its subtree (BranchGRPO,
    arXiv 2509.06040). Summed in float64, so that leaves with one value give their edges exactly that value. Leaves
    without a reward (NaN) are left out; an edge that has no other is NaN itself.

    Raises:
        ValueError: if there is not one reward a leaf.
    """
    leaves = trajectories.final.shape[0]
    if leaf_rewards.shape != (leaves,):
        raise ValueError(f"leaf_rewards must have shape ({leaves},), one a leaf, got {tuple(leaf_rewards.shape)}")
    edge, leaf = trajectories.descent
    values = leaf_rewards.to(edge.device, torch.float64)[leaf]
    scored = ~values.isnan()
    edge, values = edge[scored], values[scored]
    sums = torch.zeros(trajectories.step.shape[0], dtype=torch.float64, device=edge.device)
    counts = torch.zeros_like(sums)
    sums.index_add_(0, edge, values)
    counts.index_add_(0, edge, torch.ones_like(values))
    return (sums / counts).to(torch.float32)


def group_ids(
    trajectories: Trajectories, prompt_index: Tensor, *, by: GroupBy = "prompt", per_step: bool = True
) -> Tensor:
    """The group of every edge, [M] int64, numbered 0, 1, ... without gaps.

    ``by="prompt"`` compares all edges of a prompt, ``by="seed"`` those of one root, i.e. of one prompt and one initial
    latent (TempFlow-GRPO's seed group). ``per_step`` keeps steps apart: the per-branch groups of TempFlow-GRPO and the
    per-depth groups of BranchGRPO. It changes nothing for a plan whose walks record the same steps without forking.

    Args:
        trajectories: of one rollout.
        prompt_index: [R] int64, the prompt of every root, as given to the rollout.
        by: who is compared with whom.
        per_step: whether edges of different steps fall into different groups.

    Raises:
        ValueError: if ``by`` is unknown or a root has no prompt.
    """
    root = trajectories.root
    if root.numel() and int(root.max()) >= prompt_index.shape[0]:
        raise ValueError(
            f"prompt_index names {prompt_index.shape[0]} roots but the trajectories have {int(root.max()) + 1}; "
            "pass the one given to the rollout"
        )
    owners = {"prompt": prompt_index.to(root.device, torch.int64)[root], "seed": root}
    if by not in owners:
        raise ValueError(f"unknown group {by!r}; choose one of {sorted(owners)}")
    keys = owners[by]
    if per_step:
        num_steps = int(trajectories.step.max()) + 1 if trajectories.step.numel() else 1
        keys = keys * num_steps + trajectories.step
    return torch.unique(keys, return_inverse=True)[1]


def first_leaves(trajectories: Trajectories) -> Tensor:
    """The first leaf that descends from every edge, [M] int64.

    Where nothing forks any more that is its only one: the edges of one sample have one first leaf.
    """
    edge, leaf = trajectories.descent
    first = torch.full_like(trajectories.step, trajectories.final.shape[0])
    return first.scatter_reduce(0, edge, leaf, reduce="amin")
