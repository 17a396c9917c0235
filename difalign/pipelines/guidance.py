"""Classifier-free guidance: how two predictions become one."""

from __future__ import annotations

from torch import Tensor


def classifier_free(uncond: Tensor, cond: Tensor, scale: float, *, detach_uncond: bool) -> Tensor:
    """v = u + w (c - u), elementwise on tensors of one shape.

    With ``detach_uncond`` the unconditional prediction is a constant, so that gradient reaches the network through
    the conditional branch only, as in the released Flow-GRPO trainer (arXiv 2505.05470); the value is the same.
    Source: Ho and Salimans, arXiv 2207.12598, in Imagen's form (arXiv 2205.11487, eq. 2): w = 1 is no guidance.
    """
    u = uncond.detach() if detach_uncond else uncond
    return u + scale * (cond - u)
