"""The one Gaussian: sampling, log-density as a mean over latent elements, and divergence.

Every policy of the family is a diagonal Gaussian transition N(mean, std^2 I). All arithmetic runs in the
dtype of the step: float32, or float64 when the step was built from float64 latents.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from difalign.core.types import GaussianStep

LogProb = Callable[[GaussianStep, Tensor], Tensor]  # (step, x_next [N, *latent]) -> [N]

_HALF_LOG_TWO_PI = 0.5 * math.log(2.0 * math.pi)


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """The dtype to calculate in: float64 if any tensor is float64, float32 otherwise (half types are upcast)."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def mean_over_latent(values: Tensor) -> Tensor:
    """Mean over every dimension but the first, [N, *latent] -> [N].

    Summed in float64 and rounded back: the order of a float32 sum depends on the batch size and the number of
    threads, by as much as the tightest clip ranges, and a row's log-prob must not depend on its neighbours.
    """
    accumulate = values.dtype if values.device.type == "mps" else torch.float64  # MPS has no float64
    return values.flatten(start_dim=1).mean(dim=1, dtype=accumulate).to(values.dtype)


def sample(step: GaussianStep, noise: Tensor) -> Tensor:
    """x' = mean + std * noise, [N, *latent]; exactly the mean where std is 0."""
    return step.mean + step.std * noise.to(step.mean.dtype)


def log_prob(step: GaussianStep, x_next: Tensor) -> Tensor:
    """Mean log-density of x_next, [N] float32 (float64 if the step is).

    The *mean* over latent elements, not the sum: the clip ranges of the Flow-GRPO family (1e-5 to 1e-3)
    presuppose it (Flow-GRPO, arXiv 2505.05470, released step function). x_next is treated as data.

    Raises:
        ValueError: if any row's std is 0, where no density exists.
    """
    z = _deviation(step, x_next) / step.std
    return mean_over_latent(-0.5 * z.square() - step.std.log() - _HALF_LOG_TWO_PI)


def squared_error_log_prob(step: GaussianStep, x_next: Tensor) -> Tensor:
    """-mean (x' - mean)^2, [N]: the log-density without its constants and without its variance.

    What Flow-CPS releases in place of a density (arXiv 2509.05952): against ``log_prob`` its log-ratio is
    scaled by 2 std^2, so noisy steps weigh more.

    Raises:
        ValueError: if any row's std is 0, where no density exists.
    """
    return -mean_over_latent(_deviation(step, x_next).square())


def kl_same_std(step: GaussianStep, reference_mean: Tensor) -> Tensor:
    """KL(N(mean, std^2) || N(reference_mean, std^2)), mean over latent elements, [N].

    Raises:
        ValueError: if any row's std is 0, where the divergence is infinite.
    """
    _require_noise(step)
    return mean_over_latent((step.mean - reference_mean).square() / (2.0 * step.std.square()))


def broadcast_rows(values: Tensor, like: Tensor) -> Tensor:
    """Reshape [N] to [N, 1, ...] so that it broadcasts against ``like`` of any rank."""
    return values.reshape(-1, *([1] * (like.dim() - 1)))


def as_rows(value: float | int | Tensor, like: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """A scalar or [N] tensor as [N] on the device of ``like``, whose first dimension gives N.

    Raises:
        ValueError: if a tensor is given that is neither a scalar nor [N].
    """
    rows = torch.as_tensor(value, dtype=dtype, device=like.device)
    count = like.shape[0]
    if rows.dim() > 1 or (rows.dim() == 1 and rows.shape[0] != count):
        raise ValueError(f"expected a scalar or one value for each of {count} rows, got shape {tuple(rows.shape)}")
    return rows.expand(count)


def _deviation(step: GaussianStep, x_next: Tensor) -> Tensor:
    _require_noise(step)
    return x_next.detach().to(step.mean.dtype) - step.mean


def _require_noise(step: GaussianStep) -> None:
    if bool((step.std <= 0).any()):
        raise ValueError("std must be > 0: a deterministic step has no density; record only stochastic steps")


LOG_PROBS: Mapping[str, LogProb] = {"gaussian": log_prob, "squared_error": squared_error_log_prob}
