"""Classifier-free guidance: how two predictions become one, in one batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from difalign.core.protocols import Condition
from difalign.pipelines.prompt_cache import Embedding
from difalign.pipelines.text_condition import TextCondition

Call = Callable[[Tensor, Tensor, Embedding], Tensor]  # (x, model_time, texts) -> the network's output, all [N, ...]


def classifier_free(uncond: Tensor, cond: Tensor, scale: float, *, detach_uncond: bool) -> Tensor:
    """v = u + w (c - u), elementwise on tensors of one shape.

    With ``detach_uncond`` the unconditional prediction is a constant, so that gradient reaches the network through
    the conditional branch only, as in the released Flow-GRPO trainer (arXiv 2505.05470); the value is the same.
    Source: Ho and Salimans, arXiv 2207.12598, in Imagen's form (arXiv 2205.11487, eq. 2): w = 1 is no guidance.
    """
    u = uncond.detach() if detach_uncond else uncond
    return u + scale * (cond - u)


@final
@dataclass(frozen=True, slots=True)
class Guidance:
    """A guidance scale and what gradient it lets through.

    Raises:
        ValueError: if the scale is negative or not finite.
    """

    scale: float  # w in u + w (c - u); at or below 1 only the conditional branch is run, as in diffusers
    detach_uncond: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and self.scale >= 0.0):
            raise ValueError(f"guidance_scale must be a finite number >= 0, got {self.scale}: 1 means no guidance")

    def predict(self, call: Call, x: Tensor, model_time: Tensor, condition: Condition) -> Tensor:
        """The network's output after guidance, [N, *latent]; both branches in one call.

        Args:
            call: the network.
            x: [N, *latent].
            model_time: [N].
            condition: N rows.

        Raises:
            ValueError: if x, model_time and condition do not agree, or no pipeline of texts made the condition.
        """
        if not isinstance(condition, TextCondition):
            raise ValueError(f"expected the TextCondition that encode returns, got {type(condition).__name__}")
        if not x.shape[0] == len(condition) == model_time.numel():
            raise ValueError(
                f"x has {x.shape[0]} rows, condition {len(condition)} and model_time {model_time.numel()}: "
                "pass one of each per row"
            )
        model_time = model_time.reshape(-1).to(x.device)
        if self.scale <= 1.0:
            return call(x, model_time, condition.conditional())
        both = call(torch.cat([x, x]), torch.cat([model_time, model_time]), condition.guided())
        uncond, cond = both.chunk(2)
        return classifier_free(uncond, cond, self.scale, detach_uncond=self.detach_uncond)
