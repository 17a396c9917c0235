"""Noise grids of rectified-flow models, equal to diffusers' FlowMatchEulerDiscreteScheduler to the last bit."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from difalign.core.types import NoiseGrid

Sigmas = NDArray[np.floating]
TimeShift = Callable[[Sigmas, float], Sigmas]  # (sigmas, mu) -> sigmas


class FlowMatchScheduler(Protocol):
    """The part of diffusers' FlowMatchEulerDiscreteScheduler that a grid is read from."""

    timesteps: Tensor
    sigmas: Tensor

    def set_timesteps(
        self, num_inference_steps: int, *, sigmas: list[float] | None = None, mu: float | None = None
    ) -> None:
        """Lay out the levels: ``sigmas`` [T+1] and ``timesteps`` [T]."""
        ...


def grid_from_scheduler(
    scheduler: FlowMatchScheduler, num_steps: int, *, sigmas: Sequence[float] | None = None, mu: float | None = None
) -> NoiseGrid:
    """The grid that a diffusers scheduler would walk; the scheduler itself is left as it was.

    Args:
        scheduler: a FlowMatchEulerDiscreteScheduler or one that looks like it.
        num_steps: T.
        sigmas: the unshifted levels [T], where the model's pipeline passes its own (``uniform_sigmas`` for
            FLUX and Qwen-Image); None for the scheduler's (Stable Diffusion 3).
        mu: the dynamic shift, for schedulers with ``use_dynamic_shifting``.

    Raises:
        ValueError: if num_steps is below 1, or the levels do not fall.
    """
    _check_num_steps(num_steps)
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(num_steps, sigmas=None if sigmas is None else list(sigmas), mu=mu)
    return _noise_grid(scheduler.sigmas.cpu(), scheduler.timesteps.cpu())


def flow_match_grid(
    num_steps: int,
    *,
    shift: float = 1.0,
    mu: float | None = None,
    time_shift: TimeShift | None = None,
    shift_terminal: float | None = None,
    sigmas: Sequence[float] | None = None,
    num_train_timesteps: int = 1000,
) -> NoiseGrid:
    """The grid of a flow-matching model from plain values, as diffusers computes it.

    Args:
        num_steps: T.
        shift: static shift, ``s * sigma / (1 + (s - 1) * sigma)``. Without ``sigmas`` diffusers applies it
            twice, to the training range and to the levels, which leaves a tiny last step; so does this.
        mu: dynamic shift; excludes ``shift``.
        time_shift: how mu shifts; default ``exponential_shift`` (FLUX, Qwen-Image).
        shift_terminal: stretch the levels so that the last one before 0 has this sigma (Qwen-Image: 0.02).
        sigmas: unshifted levels [T]; default: T levels from the training range.
        num_train_timesteps: model_time is sigma times this.

    Raises:
        ValueError: if num_steps is below 1, shift and mu are both given, or the levels do not fall.
    """
    _check_num_steps(num_steps)
    if mu is not None and shift != 1.0:
        raise ValueError(f"give either shift ({shift}) or mu ({mu}), not both: mu replaces the static shift")
    if sigmas is None:
        levels = _training_range(num_steps, shift=shift, num_train_timesteps=num_train_timesteps)
    else:
        if len(sigmas) != num_steps:
            raise ValueError(f"sigmas must hold num_steps = {num_steps} levels, got {len(sigmas)}")
        levels = np.array(sigmas).astype(np.float32)
    if mu is None:
        levels = shift * levels / (1 + (shift - 1) * levels)
    else:
        levels = (time_shift or exponential_shift)(levels, mu)
    if shift_terminal:
        levels = _stretch_to_terminal(levels, shift_terminal)
    sigma = torch.from_numpy(levels).to(torch.float32)
    return _noise_grid(torch.cat([sigma, torch.zeros(1)]), sigma * num_train_timesteps)


def exponential_shift(sigmas: Sigmas, mu: float) -> Sigmas:
    """e^mu / (e^mu + 1/sigma - 1): the resolution-dependent shift of FLUX and Qwen-Image."""
    return math.exp(mu) / (math.exp(mu) + (1 / sigmas - 1) ** 1.0)


def linear_shift(sigmas: Sigmas, mu: float) -> Sigmas:
    """mu / (mu + 1/sigma - 1): the same shift with mu itself in the place of e^mu."""
    return mu / (mu + (1 / sigmas - 1) ** 1.0)


def uniform_sigmas(num_steps: int) -> list[float]:
    """T levels from 1 to 1/T, the unshifted grid that the FLUX and Qwen-Image pipelines pass."""
    return np.linspace(1.0, 1 / num_steps, num_steps).tolist()


def dynamic_mu(
    sequence_length: int,
    *,
    base_sequence_length: int = 256,
    max_sequence_length: int = 4096,
    base_shift: float = 0.5,
    max_shift: float = 1.15,
) -> float:
    """mu, linear in the number of latent tokens (defaults: FLUX.1-dev's scheduler configuration)."""
    slope = (max_shift - base_shift) / (max_sequence_length - base_sequence_length)
    return sequence_length * slope + (base_shift - slope * base_sequence_length)


def _training_range(num_steps: int, *, shift: float, num_train_timesteps: int) -> Sigmas:
    """T levels between the ends of the training range, which diffusers has already shifted, in float32."""
    ends = torch.tensor([num_train_timesteps, 1], dtype=torch.float32) / num_train_timesteps
    ends = shift * ends / (1 + (shift - 1) * ends)
    first, last = (end * num_train_timesteps for end in ends.tolist())
    return np.linspace(first, last, num_steps) / num_train_timesteps


def _stretch_to_terminal(sigmas: Sigmas, terminal: float) -> Sigmas:
    complement = 1 - sigmas
    return 1 - complement / (complement[-1] / (1 - terminal))


def _noise_grid(sigma: Tensor, model_time: Tensor) -> NoiseGrid:
    if not bool((sigma.diff() < 0).all()):
        raise ValueError(f"sigma must fall at every step, got {sigma.tolist()}")
    return NoiseGrid(alpha=1 - sigma, sigma=sigma, model_time=model_time)


def _check_num_steps(num_steps: int) -> None:
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
