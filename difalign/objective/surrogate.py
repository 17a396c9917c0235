"""Losses on mean log-densities: clipped and clamped surrogate, score function, pairs; and the ratios they take."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, final

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


class PolicyLoss(Protocol):
    """What a policy loss is called with; every loss of ``SURROGATES`` follows it."""

    def __call__(
        self,
        log_prob: Tensor,
        old_log_prob: Tensor,
        advantage: Tensor,
        *,
        clip_range: float | ClipRange,
        weight: Tensor | None = None,
        log_ratio: LogRatio = plain_log_ratio,
    ) -> Surrogate:
        """The loss of every row; the arguments are those of ``clipped_surrogate``."""
        ...


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

    With the plain ratio this is DDPO with importance sampling (arXiv 2305.13301, section 4.3: DDPO-IS).

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
    _check_shapes(log_prob, {"old_log_prob": old_log_prob, "advantage": advantage, "weight": weight})
    bounds, advantage = _bounds(clip_range), advantage.detach()
    delta = log_ratio(log_prob, old_log_prob.detach())
    ratio = delta.exp()
    loss = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1.0 - bounds.low, 1.0 + bounds.high))
    return _reported(loss, delta, bounds=bounds, weight=weight)


def score_function(
    log_prob: Tensor,
    old_log_prob: Tensor,
    advantage: Tensor,
    *,
    clip_range: float | ClipRange,
    weight: Tensor | None = None,
    log_ratio: LogRatio = plain_log_ratio,
) -> Surrogate:
    """weight * -A * log_prob, one loss per row: REINFORCE.

    DDPO's score-function estimator (arXiv 2305.13301, section 4.3: DDPO-SF). Its gradient is that of the objective
    only on samples of the policy being trained, where it equals the gradient of ``clipped_surrogate``: one update a
    rollout. No ratio enters the loss; ratio, divergence and clip fractions are what they would be, and say whether the
    samples are still the policy's own.

    Args:
        log_prob: [N] mean log-density under the policy being trained.
        old_log_prob: [N] under the policy that sampled; only for what is logged.
        advantage: [N]; treated as data.
        clip_range: only for what is logged.
        weight: [N] step weights, default 1.
        log_ratio: only for what is logged.

    Raises:
        ValueError: as ``clipped_surrogate``.
    """
    _check_shapes(log_prob, {"old_log_prob": old_log_prob, "advantage": advantage, "weight": weight})
    delta = log_ratio(log_prob, old_log_prob.detach())
    return _reported(-advantage.detach() * log_prob, delta, bounds=_bounds(clip_range), weight=weight)


def clamped_surrogate(
    log_prob: Tensor,
    old_log_prob: Tensor,
    advantage: Tensor,
    *,
    clip_range: float | ClipRange,
    weight: Tensor | None = None,
    log_ratio: LogRatio = plain_log_ratio,
) -> Surrogate:
    """weight * -A * clip(r, 1 - low, 1 + high), one loss per row: without the maximum of ``clipped_surrogate``.

    The policy term of DPOK's released code (arXiv 2305.16381), which keeps its clip at 1e-4: outside the range there is
    no gradient, whatever the sign of the advantage. Arguments and errors as ``clipped_surrogate``.
    """
    _check_shapes(log_prob, {"old_log_prob": old_log_prob, "advantage": advantage, "weight": weight})
    bounds = _bounds(clip_range)
    delta = log_ratio(log_prob, old_log_prob.detach())
    loss = -advantage.detach() * delta.exp().clamp(1.0 - bounds.low, 1.0 + bounds.high)
    return _reported(loss, delta, bounds=bounds, weight=weight)


def pair_logistic(
    log_prob: Tensor,
    old_log_prob: Tensor,
    reference_log_prob: Tensor,
    *,
    beta: float,
    clip: float | None,
    clip_range: float | ClipRange,
    weight: Tensor | None = None,
) -> Surrogate:
    """-weight * log sigmoid(beta (log r_w - log r_l)), with r the ratio to the reference policy.

    D3PO (arXiv 2311.13231), released code: each ratio is clipped to [1 - clip, 1 + clip]; without the clip it is DPO
    (arXiv 2305.18290) on single transitions. Two rows that share the state they start from, as two branches do at their
    fork, compare nothing but what was done there.

    Args:
        log_prob: [2P] mean log-density under the policy being trained; rows 2p and 2p + 1 are the preferred and the
            rejected sample of pair p.
        old_log_prob: [2P] under the policy that sampled; only for what is logged.
        reference_log_prob: [2P] under the policy before training.
        beta: 0.1 in D3PO.
        clip: half-width of the clip of both ratios, 0.1 in D3PO; None leaves them as they are.
        clip_range: only for what is logged.
        weight: [2P] step weights, default 1; the two rows of a pair are of one step.

    Returns:
        Both rows of a pair have the loss of their pair, so that a mean over rows is the mean over pairs.

    Raises:
        ValueError: if shapes differ or the number of rows is odd.
    """
    _check_shapes(log_prob, {"old_log_prob": old_log_prob, "reference_log_prob": reference_log_prob, "weight": weight})
    if log_prob.numel() % 2:
        raise ValueError(f"pairs need an even number of rows, got {log_prob.numel()}")
    against = log_prob - reference_log_prob.detach()
    if clip is not None:
        against = against.exp().clamp(1.0 - clip, 1.0 + clip).log()
    margin = beta * (against[0::2] - against[1::2])
    loss = -torch.nn.functional.logsigmoid(margin).repeat_interleave(2)
    delta = plain_log_ratio(log_prob, old_log_prob.detach())
    return _reported(loss, delta, bounds=_bounds(clip_range), weight=weight)


SURROGATES: Mapping[str, PolicyLoss] = {
    "clipped": clipped_surrogate,
    "clamped": clamped_surrogate,
    "score_function": score_function,
}


def _reported(loss: Tensor, delta: Tensor, *, bounds: ClipRange, weight: Tensor | None) -> Surrogate:
    """The loss, weighted, with what is logged about the log-ratio ``delta``."""
    delta = delta.detach()
    ratio = delta.exp()
    high = (ratio > 1.0 + bounds.high).to(ratio.dtype).mean()
    low = (ratio < 1.0 - bounds.low).to(ratio.dtype).mean()
    return Surrogate(
        loss=loss if weight is None else loss * weight.detach(),
        ratio=ratio,
        approx_kl=0.5 * delta.square().mean(),
        clip_fraction=high + low,
        clip_fraction_high=high,
        clip_fraction_low=low,
    )


def _bounds(clip_range: float | ClipRange) -> ClipRange:
    return clip_range if isinstance(clip_range, ClipRange) else ClipRange(low=clip_range, high=clip_range)


def _check_shapes(log_prob: Tensor, named: Mapping[str, Tensor | None]) -> None:
    for name, value in named.items():
        if value is not None and value.shape != log_prob.shape:
            raise ValueError(
                f"{name} must have the shape of log_prob {tuple(log_prob.shape)}, got {tuple(value.shape)}"
            )
