"""The DDIM step on a Gaussian, whose marginals, posterior and ODE are known in closed form."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from difalign.core.gaussian import sample
from difalign.core.types import GaussianStep, NoiseGrid
from difalign.process.diffusion import DiffusionProcess
from difalign.process.diffusion_grids import ddim_grid

MEAN, STD = 1.5, 0.5


def exact_epsilon(x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """E[x1 | x] for x0 ~ N(1.5, 0.25); affine in x."""
    variance = alpha.square() * STD**2 + sigma.square()
    return sigma * (x - alpha * MEAN) / variance


def chain(grid: NoiseGrid, eta: float) -> tuple[Tensor, Tensor]:
    """Mean and std of x at every level by exact propagation from the exact marginal of level 0, [T+1] each."""
    steps = torch.arange(grid.num_steps)

    def transition(value: float) -> GaussianStep:
        x = torch.full((grid.num_steps, 1), value, dtype=torch.float64)
        epsilon = exact_epsilon(x, grid.alpha[:-1, None], grid.sigma[:-1, None])
        return DiffusionProcess().transition(x, epsilon, grid, steps, eta)

    still, moved = transition(0.0), transition(1.0)
    slopes = (moved.mean - still.mean).flatten().tolist()
    means, stds = [float(grid.alpha[0]) * MEAN], [float(marginal(grid)[0])]
    for slope, offset, std in zip(slopes, still.mean.flatten().tolist(), still.std.flatten().tolist(), strict=True):
        means.append(slope * means[-1] + offset)
        stds.append(math.hypot(slope * stds[-1], std))
    return torch.tensor(means, dtype=torch.float64), torch.tensor(stds, dtype=torch.float64)


def marginal(grid: NoiseGrid) -> Tensor:
    """The std of x under the forward process at every level, [T+1]."""
    return (grid.alpha.square() * STD**2 + grid.sigma.square()).sqrt()


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_every_level_keeps_the_marginal_of_the_forward_process(eta: float) -> None:
    grid = ddim_grid(999)
    means, stds = chain(grid, eta)
    torch.testing.assert_close(means, grid.alpha * MEAN, atol=2e-5, rtol=0)
    torch.testing.assert_close(stds, marginal(grid), atol=0.004, rtol=0)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_error_of_the_marginals_falls_with_the_number_of_steps(eta: float) -> None:
    errors = [float((chain(grid, eta)[1] - marginal(grid)).abs().max()) for grid in map(ddim_grid, (50, 100, 200, 500))]
    assert all(later < 0.7 * earlier for earlier, later in itertools.pairwise(errors))


def test_eta_one_has_the_moments_of_ddpm_posterior_sampling() -> None:
    """q(x' | x, x0) of DDPM (arXiv 2006.11239, Eq. 6 and 7) at E[x0 | x], written with betas instead of shares."""
    grid = ddim_grid(20)
    a, a_next = (v.square() for v in (grid.alpha[:-1], grid.alpha_next))
    alpha_t = a / a_next  # 1 - beta_t over a stride
    on_data = a_next.sqrt() * (1 - alpha_t) / (1 - a)
    on_state = alpha_t.sqrt() * (1 - a_next) / (1 - a)
    posterior_std = ((1 - a_next) / (1 - a) * (1 - alpha_t)).sqrt()
    x = torch.randn(20, 1, dtype=torch.float64)
    epsilon = exact_epsilon(x, grid.alpha[:-1, None], grid.sigma[:-1, None])
    step = DiffusionProcess().transition(x, epsilon, grid, torch.arange(20), 1.0)
    clean = (x - grid.sigma[:-1, None] * epsilon) / grid.alpha[:-1, None]
    torch.testing.assert_close(step.mean, on_data[:, None] * clean + on_state[:, None] * x, atol=1e-6, rtol=0)
    torch.testing.assert_close(step.std.flatten(), posterior_std, atol=1e-7, rtol=0)


def test_eta_zero_follows_the_ode() -> None:
    """For Gaussian data the probability-flow ODE keeps the quantile: x = alpha m + spread * z with one z throughout."""
    grid = ddim_grid(999)
    z = torch.tensor([[-1.5], [0.0], [0.7], [2.0]], dtype=torch.float64)
    x = grid.alpha[0] * MEAN + marginal(grid)[0] * z
    for index in range(grid.num_steps):
        epsilon = exact_epsilon(x, grid.alpha[index], grid.sigma[index])
        x = DiffusionProcess().transition(x, epsilon, grid, index, 0.0).mean
    torch.testing.assert_close(x, grid.alpha[-1] * MEAN + marginal(grid)[-1] * z, atol=0.005, rtol=0)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_sampled_marginals(eta: float) -> None:
    grid, rows = ddim_grid(100), 20_000
    x = grid.alpha[0] * MEAN + marginal(grid)[0] * torch.randn(rows, 1, dtype=torch.float64)
    for index in range(grid.num_steps):
        epsilon = exact_epsilon(x, grid.alpha[index], grid.sigma[index])
        x = sample(DiffusionProcess().transition(x, epsilon, grid, index, eta), torch.randn_like(x))
    means, stds = chain(grid, eta)
    assert float(x.mean()) == pytest.approx(float(means[-1]), abs=4 * STD / math.sqrt(rows))
    assert float(x.std()) == pytest.approx(float(stds[-1]), abs=4 * STD / math.sqrt(2 * rows))
