"""How a network is guided: away from a second prediction, by an input of its own, or not at all."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, Self, final

import torch
from torch import Tensor

from difalign.core.protocols import Condition
from difalign.core.types import Branches
from difalign.pipelines.prompt_cache import Embedding
from difalign.pipelines.text_condition import TextCondition

Call = Callable[[Tensor, Tensor, Embedding], Tensor]  # (x, model_time, texts) -> the network's output, all [N, ...]


class Guides(Protocol):
    """A guidance scale, what gradient it lets through, and what it does to a network's output."""

    @property
    def scale(self) -> float:
        """At or below 1 there is no unconditional branch in any form of guidance."""
        ...

    def at(self, scale: float, *, detach_uncond: bool = False) -> Self:
        """The same form of guidance at another scale."""
        ...

    def branches(self, call: Call, x: Tensor, model_time: Tensor, condition: Condition) -> Branches:
        """The network's output after guidance, and that of the conditional branch.

        Args:
            call: the network.
            x: [N, *latent].
            model_time: [N].
            condition: N rows.

        Raises:
            ValueError: if x, model_time and condition do not agree, or no pipeline of texts made the condition.
        """
        ...


def classifier_free(uncond: Tensor, cond: Tensor, scale: float, *, detach_uncond: bool) -> Tensor:
    """v = u + w (c - u), elementwise on tensors of one shape.

    With ``detach_uncond`` the unconditional prediction is a constant, so that gradient reaches the network through
    the conditional branch only, as in the released Flow-GRPO trainer (arXiv 2505.05470); the value is the same.
    Source: Ho and Salimans, arXiv 2207.12598, in Imagen's form (arXiv 2205.11487, eq. 2): w = 1 is no guidance.
    """
    u = uncond.detach() if detach_uncond else uncond
    return u + scale * (cond - u)


def norm_kept(guided: Tensor, cond: Tensor) -> Tensor:
    """``guided`` with the length of ``cond`` along the last axis, g |c| / |g|; both [..., C].

    Guidance stretches the prediction of every token; this turns it and leaves its length. Gradient passes through
    both lengths. Source: Qwen-Image, arXiv 2508.02324, as diffusers' ``QwenImagePipeline`` computes it.
    """
    return guided * (torch.norm(cond, dim=-1, keepdim=True) / torch.norm(guided, dim=-1, keepdim=True))


@final
@dataclass(frozen=True, slots=True)
class Guidance:
    """Classifier-free guidance, both branches in one call.

    Raises:
        ValueError: if the scale is negative or not finite.
    """

    scale: float  # w in u + w (c - u); at or below 1 only the conditional branch is run, as in diffusers
    detach_uncond: bool = False

    def __post_init__(self) -> None:
        _check_scale(self.scale)

    def at(self, scale: float, *, detach_uncond: bool = False) -> Guidance:
        """See ``Guides``."""
        return Guidance(scale, detach_uncond)

    def branches(self, call: Call, x: Tensor, model_time: Tensor, condition: Condition) -> Branches:
        """See ``Guides``."""
        texts, model_time = _rows(x, model_time, condition)
        if self.scale <= 1.0:
            return _alone(call(x, model_time, texts.conditional()))
        both = call(torch.cat([x, x]), torch.cat([model_time, model_time]), texts.guided())
        uncond, cond = both.chunk(2)
        return Branches(classifier_free(uncond, cond, self.scale, detach_uncond=self.detach_uncond), cond)


@final
@dataclass(frozen=True, slots=True)
class NormKeepingGuidance:
    """Classifier-free guidance that keeps the length of every token of the conditional prediction; see ``norm_kept``.

    The branches are two calls, since texts of the two differ in length; diffusers makes two calls as well.

    Raises:
        ValueError: if the scale is negative or not finite.
    """

    scale: float  # w in u + w (c - u); at or below 1 only the conditional branch is run, and left as it is
    detach_uncond: bool = False

    def __post_init__(self) -> None:
        _check_scale(self.scale)

    def at(self, scale: float, *, detach_uncond: bool = False) -> NormKeepingGuidance:
        """See ``Guides``."""
        return NormKeepingGuidance(scale, detach_uncond)

    def branches(self, call: Call, x: Tensor, model_time: Tensor, condition: Condition) -> Branches:
        """See ``Guides``."""
        texts, model_time = _rows(x, model_time, condition)
        cond = call(x, model_time, texts.conditional())
        if self.scale <= 1.0:
            return _alone(cond)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.detach_uncond):  # no graph that is not used
            uncond = call(x, model_time, texts.unconditional())
        guided = classifier_free(uncond, cond, self.scale, detach_uncond=self.detach_uncond)
        return Branches(norm_kept(guided, cond), cond)


@final
@dataclass(frozen=True, slots=True)
class EmbeddedGuidance:
    """The network was distilled to take the scale as an input (Meng et al., arXiv 2210.03142): one branch, one call.

    ``call`` gives the network its scale. There is no unconditional branch, so there is none to detach.

    Raises:
        ValueError: if the scale is negative or not finite.
    """

    scale: float

    def __post_init__(self) -> None:
        _check_scale(self.scale)

    def at(self, scale: float, *, detach_uncond: bool = False) -> EmbeddedGuidance:  # noqa: ARG002  # nothing to detach
        """See ``Guides``."""
        return EmbeddedGuidance(scale)

    def branches(self, call: Call, x: Tensor, model_time: Tensor, condition: Condition) -> Branches:
        """See ``Guides``."""
        texts, model_time = _rows(x, model_time, condition)
        return _alone(call(x, model_time, texts.conditional()))


@final
@dataclass(frozen=True, slots=True)
class Unguided:
    """A network that takes no guidance in any form: every scale but "none" is refused.

    Raises:
        ValueError: if the scale is above 1, negative or not finite.
    """

    scale: float

    def __post_init__(self) -> None:
        _check_scale(self.scale)
        if self.scale > 1.0:
            raise ValueError(
                f"guidance_scale = {self.scale:g}: this network was distilled without guidance and takes none; "
                "set guidance to 1"
            )

    def at(self, scale: float, *, detach_uncond: bool = False) -> Unguided:  # noqa: ARG002  # nothing to detach
        """See ``Guides``."""
        return Unguided(scale)

    def branches(self, call: Call, x: Tensor, model_time: Tensor, condition: Condition) -> Branches:
        """See ``Guides``."""
        texts, model_time = _rows(x, model_time, condition)
        return _alone(call(x, model_time, texts.conditional()))


def _alone(prediction: Tensor) -> Branches:
    """Of a network that was evaluated once."""
    return Branches(prediction, prediction)


def _check_scale(scale: float) -> None:
    if not (math.isfinite(scale) and scale >= 0.0):
        raise ValueError(f"guidance_scale must be a finite number >= 0, got {scale}: 1 means no guidance")


def _rows(x: Tensor, model_time: Tensor, condition: Condition) -> tuple[TextCondition, Tensor]:
    """The condition as one of texts, and model_time as [N] where x is."""
    if not isinstance(condition, TextCondition):
        raise ValueError(f"expected the TextCondition that encode returns, got {type(condition).__name__}")
    if not x.shape[0] == len(condition) == model_time.numel():
        raise ValueError(
            f"x has {x.shape[0]} rows, condition {len(condition)} and model_time {model_time.numel()}: "
            "pass one of each per row"
        )
    return condition, model_time.reshape(-1).to(x.device)
