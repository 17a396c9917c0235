"""DPM-Solver++ (2M): a deterministic multistep ODE step on the clean estimates of two levels."""

from __future__ import annotations

from torch import Tensor

from difalign.process.levels import Levels


def dpm_solver_step(
    x: Tensor, clean: Tensor, levels: Levels, *, previous_clean: Tensor | None, step_ratio: Tensor | None
) -> Tensor:
    """x at the next level by DPM-Solver++ of order 2, or of order 1 when there is no previous estimate.

    With lambda = log(alpha / sigma) and h = lambda_next - lambda:
    ``x' = sigma'/sigma * x - alpha' * (e^-h - 1) * (D0 + D1 / 2)``, ``D1 = (D0 - D_prev) * h / h_prev``
    (arXiv 2211.01095, Algorithm 2; the midpoint variant used by MixGRPO-Flash, arXiv 2507.21802). Order 1 is
    the Euler step of a rectified flow. At sigma' = 0 the result is the clean estimate, and at alpha = 0 a step
    of order 1 is finite, since e^-h = (alpha * sigma') / (sigma * alpha').

    Args:
        x: [N, *latent] at the current level.
        clean: D0, the estimate of x0 there.
        levels: the levels on both sides.
        previous_clean: D_prev, the estimate one level earlier; None for a step of order 1.
        step_ratio: h / h_prev from ``log_snr_ratio``; None for a step of order 1.

    Raises:
        ValueError: if only one of ``previous_clean`` and ``step_ratio`` is given.
    """
    if (previous_clean is None) != (step_ratio is None):
        raise ValueError("give both previous_clean and step_ratio for a step of order 2, or neither for order 1")
    if previous_clean is not None and step_ratio is not None:
        clean = clean + 0.5 * step_ratio * (clean - previous_clean)
    exp_minus_h = levels.alpha * levels.sigma_next / (levels.sigma * levels.alpha_next)
    return levels.sigma_next / levels.sigma * x - levels.alpha_next * (exp_minus_h - 1) * clean


def log_snr_ratio(previous: Levels, current: Levels) -> Tensor:
    """h / h_prev, the ratio of two adjacent steps in log(alpha / sigma); infinite where a level has sigma 0."""
    return _log_snr_step(current) / _log_snr_step(previous)


def _log_snr_step(levels: Levels) -> Tensor:
    return (levels.alpha_next / levels.sigma_next).log() - (levels.alpha / levels.sigma).log()
