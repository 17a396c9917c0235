"""The clipped policy-gradient surrogate (PPO) on mean log-densities, and the ratios it can be built on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from difalign.core.gaussian import mean_over_latent
from difalign.core.types import GaussianStep

LogRatio = Callable[[Tensor, Tensor], Tensor]  # (log_prob [N], old_log_prob [N]) -> log-ratio [N]


@dataclass(frozen=True, slots=True)
class ClipRange:
    """The ratio is kept in [1 - low, 1 + high]."""

    low: float
    high: float

    def __post_init__(self) -> None:
        """Reject bounds that would make the clip empty or the ratio negative."""
        if not 0 < self.low <= 1 or self.high <= 0:
            raise ValueError(f"clip range needs 0 < low <= 1 and high > 0, got low={self.low}, high={self.high}")


@dataclass(frozen=True, slots=True)
class Surrogate:
    """The policy loss of every row, and what to log about the ratio (detached)."""

    loss: Tensor  # [N], weighted, carries gradient
    ratio: Tensor  # [N]
    approx_kl: Tensor  # [], mean of half the squared log-ratio
    clip_fraction: Tensor  # [], share of ratios outside the range
    clip_fraction_high: Tensor  # [], above 1 + high
    clip_fraction_low: Tensor  # [], below 1 - low


def plain_log_ratio(log_prob: Tensor, old_log_prob: Tensor) -> Tensor:
    """log_prob - old_log_prob, [N]."""
    return log_prob - old_log_prob


@final
@dataclass(frozen=True, slots=True)
class RatioNorm:
    """GRPO-Guard's normalised log-ratio: zero-mean, and of one scale at every step (arXiv 2510.22319).

    ``(log_prob - old_log_prob + mean (mu - mu_old)^2 / (2 std^2)) * std``, which equals the mean of
    (mu - mu_old) times the noise that was drawn: the plain log-ratio of Gaussians is negative on average and
    its scale grows as 1/std, so the upper clip would hardly ever act.
    """

    step: GaussianStep  # under the policy being trained
    old_mean: Tensor  # [N, *latent], under the policy that sampled

    def __call__(self, log_prob: Tensor, old_log_prob: Tensor) -> Tensor:
        """The normalised log-ratio, [N]; the log-probs must be full Gaussian ones."""
        std = self.step.std.flatten()
        shift = mean_over_latent((self.step.mean - self.old_mean.detach()).square())
        return (log_prob - old_log_prob + shift / (2.0 * std.square())) * std


def clipped_surrogate(
    log_prob: Tensor,
    old_log_prob: Tensor,
    advantage: Tensor,
    *,
    clip_range: float | ClipRange,
    weight: Tensor | None = None,
    log_ratio: LogRatio = plain_log_ratio,
) -> Surrogate:
    """weight * max(-A * r, -A * clip(r, 1 - low, 1 + high)), one loss per row (PPO, arXiv 1707.06347, Eq. 7).

    Args:
        log_prob: [N] mean log-density under the policy being trained.
        old_log_prob: [N] under the policy that sampled; treated as data.
        advantage: [N]; treated as data.
        clip_range: half-width of the clip, or its two sides; 1e-5 to 1e-3 for mean log-densities.
        weight: [N] step weights, default 1; they multiply both branches.
        log_ratio: how the two log-probs become a ratio; ``RatioNorm`` for GRPO-Guard.

    Raises:
        ValueError: if shapes differ, which broadcasting would hide, or the clip range is out of bounds.
    """
    for name, value in (("old_log_prob", old_log_prob), ("advantage", advantage), ("weight", weight)):
        if value is not None and value.shape != log_prob.shape:
            raise ValueError(
                f"{name} must have the shape of log_prob {tuple(log_prob.shape)}, got {tuple(value.shape)}"
            )
    bounds = clip_range if isinstance(clip_range, ClipRange) else ClipRange(low=clip_range, high=clip_range)
    advantage = advantage.detach()
    delta = log_ratio(log_prob, old_log_prob.detach())
    ratio = delta.exp()
    loss = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1.0 - bounds.low, 1.0 + bounds.high))
    if weight is not None:
        loss = loss * weight.detach()
    high = (ratio.detach() > 1.0 + bounds.high).to(ratio.dtype).mean()
    low = (ratio.detach() < 1.0 - bounds.low).to(ratio.dtype).mean()
    return Surrogate(
        loss=loss,
        ratio=ratio.detach(),
        approx_kl=0.5 * delta.detach().square().mean(),
        clip_fraction=high + low,
        clip_fraction_high=high,
        clip_fraction_low=low,
    )
