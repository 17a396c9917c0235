"""What a step shows of where its rows are going, for no evaluation of the network beyond the step's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from difalign.core.protocols import Condition, Pipeline, Process, ShowsBranches
from difalign.core.types import Branches, NoiseGrid, Source
from difalign.rollout.engine import compute_dtype


def branch_rows(
    pipeline: Pipeline, grid: NoiseGrid, x: Tensor, step: Tensor, condition: Condition, *, conditional: bool
) -> Branches:
    """The network on rows ``x`` [N, *latent] at steps ``step`` [N], conditioned by ``condition`` (N rows).

    Args:
        pipeline: the model.
        grid: the chain.
        x: where the rows stand.
        step: the step of each.
        condition: of each.
        conditional: whether the conditional branch is asked for; if not, the guided prediction may stand for it.

    Raises:
        ValueError: if the conditional branch is asked for and the pipeline does not show it.
    """
    x, model_time = x.to(compute_dtype(x)), grid.model_time.to(x.device)[step]
    if isinstance(pipeline, ShowsBranches):
        return pipeline.predict_branches(x, model_time, condition)
    if conditional:
        raise ValueError(
            f"{type(pipeline).__name__} has no predict_branches, so that its conditional branch cannot be read; "
            "read the guided one"
        )
    guided = pipeline.predict(x, model_time, condition)
    return Branches(guided, guided)


def estimates(
    process: Process, x: Tensor, branches: Branches, grid: NoiseGrid, step: Tensor, *, sources: tuple[Source, ...]
) -> Tensor:
    """What the sources show, stacked along the first axis of a latent, [N, k*C, ...] in the dtype of ``x``.

    Args:
        process: of the pipeline that predicted.
        x: where the rows stand, [N, C, ...].
        branches: what was predicted there.
        grid: the chain.
        step: of each row, [N] int64.
        sources: k of them; with none, C is 0.
    """
    if not sources:
        return x[:, :0]
    return torch.cat([_READERS[source](process, x, branches, grid, step).to(x.dtype) for source in sources], dim=1)


_Reader = Callable[[Process, Tensor, Branches, NoiseGrid, Tensor], Tensor]
_READERS: Mapping[Source, _Reader] = {
    "guided": lambda process, x, branches, grid, step: process.clean_estimate(x, branches.guided, grid, step),
    "conditional": lambda process, x, branches, grid, step: process.clean_estimate(x, branches.conditional, grid, step),
    "state": lambda _process, x, _branches, _grid, _step: x,
}
