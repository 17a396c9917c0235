"""One batch scored by several processes, to the gradient that one process would have computed alone.

A batch is split by rank. Each process scores its part, learns the scores of the others as constants, and takes the loss
of the whole batch; the gradient that reaches its weights is that of its own scores, and the sum over processes is the
gradient of the loss. This holds for any loss, also for one that compares rows of different processes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from difalign.train.team import Team


def score_together(score: Callable[[Tensor], Tensor], rows: Tensor, team: Team | None) -> Tensor:
    """The scores of all rows, [B]; only those that this process has computed carry a gradient.

    Args:
        score: of some rows [b] int64, the scores [b].
        rows: of the batch, [B] int64, the same on every process.
        team: the processes; None = this one alone.
    """
    if team is None or team.world == 1:
        return score(rows)
    parts = rows.tensor_split(team.world)
    own = score(parts[team.rank]) if parts[team.rank].numel() else torch.zeros(0)
    everyone = torch.tensor(team.gather(own.detach().float().tolist())).to(own)
    start = sum(part.numel() for part in parts[: team.rank])
    return torch.cat([everyone[:start], own, everyone[start + own.numel() :]])


def backward_together(loss: Tensor, parameters: Sequence[nn.Parameter], team: Team | None) -> None:
    """The gradient of a loss of ``score_together``, on every process; what no process reached stays without one."""
    if team is None or team.world == 1:
        loss.backward()
        return
    if loss.requires_grad:  # a process without a row of the batch has no gradient to give
        loss.backward()
    reached = team.total([float(parameter.grad is not None) for parameter in parameters])
    team.sum_gradients(parameters)
    for parameter, number in zip(parameters, reached, strict=True):
        if number == 0:
            parameter.grad = None  # a zero in its place would let weight decay shrink it
