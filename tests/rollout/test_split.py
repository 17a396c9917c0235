"""The split walk of B2-DiffuRL (arXiv 2503.11240) on twenty steps: what is shared, and what it costs."""

from __future__ import annotations

import pytest
import torch

from difalign.rollout import plans
from difalign.rollout.engine import rollout
from difalign.rollout.trie import count_forwards
from tests.toys import elementwise_pipeline

N, K = 20, 5
SEEDS = (1, 2, 3)
PROMPTS = torch.tensor([0, 1, 1])


@pytest.mark.parametrize("interval", [1, 14, 20])
def test_branches_share_the_prefix_bit_for_bit_and_part_at_once(interval: int) -> None:
    """All states up to the fork are one; the next differ in every pair of branches. At 20 only the start is shared."""
    made = plans.split(N, 0.7, at=N - interval, children=K, last_step_noise=True, train_prefix=True)
    pipeline = elementwise_pipeline()
    walks = rollout(
        pipeline, (made,), condition=pipeline.encode(["-0.5", "0.8"]), prompt_index=PROMPTS, root_seeds=SEEDS
    )
    fork = N - interval
    x = [walks.x[walks.step == step].unflatten(0, (len(SEEDS), -1)) for step in range(N)]
    x_next = [walks.x_next[walks.step == step].unflatten(0, (len(SEEDS), -1)) for step in range(N)]
    for step in range(N):
        assert x_next[step].shape[1] == (K if step >= fork else 1)
        if step > 0:  # each walk goes on from where it was
            assert torch.equal(x[step], x_next[step - 1].expand_as(x[step]))
    assert torch.equal(x[fork], x[fork][:, :1].expand_as(x[fork]))
    for step in range(fork, N):
        for i in range(K):
            assert all(bool((x_next[step][:, i] != x_next[step][:, j]).any()) for j in range(i))
    assert walks.forwards == count_forwards((made,), len(SEEDS)) == len(SEEDS) * (fork + 1 + K * (interval - 1))


def test_published_rows_of_a_stage() -> None:
    """256 start noises: the scripts evaluate the fork once a branch; here once a start noise."""
    ours = [count_forwards((plans.split(N, 1.0, at=N - s, children=K, last_step_noise=True),), 256) for s in (14, 20)]
    theirs = [256 * ((N - s) + K * s) for s in (14, 20)]
    assert [rows // 8 for rows in theirs] == [2432, 3200]  # calls of eight rows
    assert [b - a for a, b in zip(ours, theirs, strict=True)] == [256 * (K - 1)] * 2
