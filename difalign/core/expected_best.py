"""The expected best of a few among many rewards, in closed form."""

from __future__ import annotations

import torch
from torch import Tensor


def expected_best(rewards: Tensor, count: int) -> Tensor:
    """The expected best of ``count`` drawn without replacement from M rewards [..., M], exactly; [...] float64.

    ``sum_k r_(k) C(k - 1, n - 1) / C(M, n)`` with r_(k) rising.

    Raises:
        ValueError: if count lies outside 1 to M.
    """
    pool = rewards.shape[-1]
    if not 1 <= count <= pool:
        raise ValueError(f"the best of {count} among {pool} rewards; count must lie in 1 to {pool}")
    weights = torch.zeros(pool, dtype=torch.float64)
    weights[pool - 1] = count / pool
    for k in range(pool - 1, count - 1, -1):  # C(k - 1, n - 1) / C(k, n - 1) = (k - n + 1) / k, without large numbers
        weights[k - 1] = weights[k] * (k - count + 1) / k
    return (rewards.double().sort(dim=-1).values * weights).sum(dim=-1)
