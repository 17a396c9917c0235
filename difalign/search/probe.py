"""How often a pipeline's network is evaluated for one row: counted, since guidance takes many forms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from difalign.core.protocols import Pipeline
from difalign.core.types import NoiseGrid


@torch.no_grad()
def evaluations_a_row(pipeline: Pipeline, prompt: str, grid: NoiseGrid) -> int:
    """Rows that reach the network for one row of ``predict``; predicts one row of noise to see.

    Raises:
        ValueError: if nothing is seen to reach ``pipeline.network``.
    """
    rows: list[int] = []

    def count(module: nn.Module, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> None:  # noqa: ARG001  # torch's
        latents = next((value for value in (*arguments, *named.values()) if isinstance(value, Tensor)), None)
        rows.append(0 if latents is None else latents.shape[0])

    x = pipeline.initial_latents([torch.Generator().manual_seed(0)]).to(pipeline.device)
    hook = pipeline.network.register_forward_pre_hook(count, with_kwargs=True)
    try:
        pipeline.predict(x, grid.model_time[:1].to(x.device), pipeline.encode([prompt]))
    finally:
        hook.remove()
    if sum(rows) < 1:
        raise ValueError("this pipeline's predict does not call pipeline.network with tensors; give branches by hand")
    return sum(rows)
