"""Advantages: who did better than the others that were given the same task, or than was usual for it so far."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from difalign.objective.selection import Extremes

StdMode = Literal["group", "global", "none"]

ZERO_STD = 1e-6  # a spread below this is rounding, not preference


@dataclass(frozen=True, slots=True)
class Advantages:
    """Advantages of every row, and the statistics (on the CPU) of the groups they come from."""

    advantage: Tensor  # [M] float32, on the device of the rewards
    group: Tensor  # [G] int64, the group ids in rising order
    size: Tensor  # [G] int64
    mean: Tensor  # [G] float64
    std: Tensor  # [G] float64, 0 for a single row
    zero_variance: Tensor  # [G] bool: no spread or a single row, hence advantage exactly 0
    extremes: Extremes | None = None  # what is picked of each group; None if everything counts
    scored: Tensor | None = None  # [M] bool, on the CPU: rows with a reward; None = all

    @property
    def zero_variance_fraction(self) -> float:
        """The share of groups that carry no signal."""
        return float(self.zero_variance.double().mean())


Compare = Callable[[Tensor, Tensor], Advantages]  # (rewards [M], group [M]) -> their advantages


def group_advantages(
    rewards: Tensor,
    group: Tensor,
    *,
    std: StdMode = "group",
    ddof: int = 0,
    eps: float = 1e-4,
    global_std: float | None = None,
) -> Advantages:
    """(reward - group mean) / (std + eps), in float64 from float32 rewards.

    Rewards are rounded to float32 and then calculated with in float64: the mean of equal rewards is then
    exact for any group size, and groups without spread get exactly 0 instead of amplified rounding.

    Args:
        rewards: [M].
        group: [M] int64, equal for rows that are compared with one another.
        std: "group" divides by each group's own std, "global" by one std for all rows (Flow-GRPO's
            ``global_std``), "none" does not divide (Dr. GRPO, arXiv 2503.20783).
        ddof: 0 (Flow-GRPO) or 1 (DanceGRPO).
        eps: added to the std; 1e-4 (Flow-GRPO), 1e-8 (DanceGRPO); unused with "none".
        global_std: the std over all processes, from ``reward_std`` of the gathered rewards; default: of these rows.

    Raises:
        ValueError: if shapes differ, there are no rows, a reward is not finite, or an option is out of range.
    """
    _check(rewards, group)
    if std not in _DIVISORS:
        raise ValueError(f"std must be one of {sorted(_DIVISORS)}, got {std!r}")
    if global_std is not None and std != "global":
        raise ValueError(f'global_std is used only with std="global", got std={std!r}')
    values = _exact(rewards)
    ids, inverse, size = torch.unique(group.cpu(), return_inverse=True, return_counts=True)
    mean = _group_sum(values, inverse, ids.numel()) / size
    freedom = (size - ddof).clamp_min(1)  # a single row has no spread whatever ddof says
    group_std = (_group_sum((values - mean[inverse]).square(), inverse, ids.numel()) / freedom).sqrt()
    overall = reward_std(rewards, ddof=ddof) if global_std is None else global_std
    divisor = _DIVISORS[std](_Spread(group_std=group_std, overall=overall, eps=eps))
    peers = _Peers(ids, inverse, size, mean, group_std)
    return _standardised(rewards, peers, divisor)


@dataclass(frozen=True, slots=True)
class Moments:
    """What rewards are measured against."""

    count: int  # rewards that these are the moments of
    mean: float
    std: float  # 0 for a single reward


def moments(rewards: Tensor, *, ddof: int = 0) -> Moments:
    """Count, mean and std of rewards [M], in float64 from float32, like the groups' own.

    Raises:
        ValueError: if there are none, or one is not finite.
    """
    if rewards.numel() == 0 or not bool(rewards.isfinite().all()):
        raise ValueError(f"rewards must be finite and at least one, got {rewards.flatten()[:8].tolist()}")
    values = _exact(rewards)
    freedom = max(values.numel() - ddof, 1)
    mean = values.mean()
    return Moments(values.numel(), float(mean), float(((values - mean).square().sum() / freedom).sqrt()))


def reward_std(rewards: Tensor, *, ddof: int = 0) -> float:
    """The std of all rewards, [M] of every process gathered; 0.0 for a single one."""
    return moments(rewards, ddof=ddof).std


def standardised_advantages(
    rewards: Tensor, group: Tensor, measures: Sequence[Moments], *, eps: float = 1e-6
) -> Advantages:
    """(reward - mean) / (std + eps) with moments that come from elsewhere, such as a history or all processes.

    Calculated like ``group_advantages``. Moments without spread give exactly 0.

    Args:
        rewards: [M].
        group: [M] int64, an index into ``measures``.
        measures: what the rewards of each group are measured against.
        eps: added to the std; in DDPO's released code 1e-6 with statistics per prompt, 1e-8 without.

    Raises:
        ValueError: if shapes differ, there are no rows, a reward is not finite, or a group has no moments.
    """
    _check(rewards, group)
    if int(group.min()) < 0 or int(group.max()) >= len(measures):
        raise ValueError(f"group spans {int(group.min())} to {int(group.max())} but there are {len(measures)} measures")
    ids, inverse = torch.unique(group.cpu(), return_inverse=True)
    used = [measures[i] for i in ids.tolist()]
    mean, std = (torch.tensor(v, dtype=torch.float64) for v in ([m.mean for m in used], [m.std for m in used]))
    peers = _Peers(ids, inverse, torch.tensor([m.count for m in used]), mean, std)
    return _standardised(rewards, peers, std + eps)


def among_scored(rewards: Tensor, group: Tensor, compare: Compare) -> Advantages:
    """``compare(rewards, group)`` among the rows that have a reward; the others (NaN) have an advantage of exactly 0.

    A number in the place of a missing reward would move mean and std of its group, and with them the sign of the
    advantages of others.

    Args:
        rewards: [M].
        group: [M] int64; a group without a reward is not in the result.
        compare: what makes advantages of rewards.
    """
    scored = ~rewards.isnan()
    if bool(scored.all()):
        return compare(rewards, group)
    whole = torch.zeros_like(rewards, dtype=torch.float32)
    if not bool(scored.any()):
        none, no_group = torch.zeros(0, dtype=torch.float64), torch.zeros(0, dtype=torch.int64)
        return Advantages(whole, no_group, no_group, none, none, none.bool(), scored=scored.cpu())
    found = compare(rewards[scored], group[scored])
    return replace(found, advantage=whole.masked_scatter_(scored, found.advantage), scored=scored.cpu())


def scaled_advantage(
    advantage: Tensor, *, clip: float, positive_scale: float = 1.0, negative_scale: float = 1.0
) -> Tensor:
    """clip(A, -clip, clip), times ``positive_scale`` where it is above 0 and ``negative_scale`` elsewhere, [M].

    Args:
        advantage: [M].
        clip: 5 in Flow-GRPO, B2-DiffuRL and DDPO's PyTorch code, 10 in its JAX code.
        positive_scale: beta1 of B2-DiffuRL (arXiv 2503.11240).
        negative_scale: beta2.

    Raises:
        ValueError: if the clip is not positive.
    """
    if clip <= 0:
        raise ValueError(f"clip must be positive, got {clip}")
    clipped = advantage.clamp(-clip, clip)
    return clipped * torch.where(clipped > 0, positive_scale, negative_scale)


def informative_rows(advantage: Tensor) -> Tensor:
    """The rows whose advantage is not 0, [K] int64 in rising order: the rest give no policy gradient."""
    return advantage.nonzero().flatten()


@dataclass(frozen=True, slots=True)
class _Spread:
    """What the centred rewards may be divided by."""

    group_std: Tensor  # [G]
    overall: float  # the std of all rewards
    eps: float


_DIVISORS: Mapping[StdMode, Callable[[_Spread], Tensor]] = {
    "group": lambda spread: spread.group_std + spread.eps,
    "global": lambda spread: torch.full_like(spread.group_std, spread.overall + spread.eps),
    "none": lambda spread: torch.ones_like(spread.group_std),
}


@dataclass(frozen=True, slots=True)
class _Peers:
    """Whom every row is compared with."""

    group: Tensor  # [G]
    inverse: Tensor  # [M], index into the others
    size: Tensor  # [G]
    mean: Tensor  # [G] float64
    std: Tensor  # [G] float64


def _standardised(rewards: Tensor, peers: _Peers, divisor: Tensor) -> Advantages:
    zero_variance = peers.std < ZERO_STD
    centred = _exact(rewards) - peers.mean[peers.inverse]
    advantage = torch.where(zero_variance[peers.inverse], 0.0, centred / divisor[peers.inverse])
    return Advantages(
        advantage=advantage.float().to(rewards.device),
        group=peers.group,
        size=peers.size,
        mean=peers.mean,
        std=peers.std,
        zero_variance=zero_variance,
    )


def _exact(rewards: Tensor) -> Tensor:
    """Float32 values in float64, on the CPU: scalars are few, and not every accelerator has float64."""
    return rewards.detach().cpu().float().double()


def _group_sum(values: Tensor, inverse: Tensor, groups: int) -> Tensor:
    return values.new_zeros(groups).index_add_(0, inverse, values)


def _check(rewards: Tensor, group: Tensor) -> None:
    if rewards.dim() != 1 or rewards.shape != group.shape or rewards.numel() == 0:
        raise ValueError(
            f"rewards and group must be equal non-empty vectors, got {tuple(rewards.shape)}, {tuple(group.shape)}"
        )
    if not bool(rewards.isfinite().all()):
        bad = (~rewards.isfinite()).nonzero().flatten().tolist()
        raise ValueError(f"rewards must be finite; rows {bad[:8]} are not: a reward model returned NaN or infinity")
