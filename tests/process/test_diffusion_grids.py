"""Grids of diffusion models against diffusers' DDIMScheduler, and golden numbers of Stable Diffusion's schedule."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from difalign.core.types import NoiseGrid
from difalign.process.diffusion_grids import (
    BETA_SCHEDULES,
    SPACINGS,
    ddim_grid,
    scaled_linear_betas,
    zero_terminal_shares,
)
from difalign.process.levels import levels_at
from tests.process.diffusers_reference import ddim_scheduler

EVERY_SPACING = pytest.mark.parametrize("spacing", SPACINGS)


def reference(num_steps: int, *, betas: str = "scaled_linear", **options: Any) -> Any:
    """The scheduler that ``ddim_grid`` repeats, with its levels laid out."""
    scheduler = ddim_scheduler(beta_start=0.00085, beta_end=0.012, beta_schedule=betas, clip_sample=False, **options)
    scheduler.set_timesteps(num_steps)
    return scheduler


@pytest.mark.parametrize("betas", BETA_SCHEDULES)
def test_shares_that_end_in_pure_noise_are_those_of_diffusers(betas: str) -> None:
    plain = (1 - BETA_SCHEDULES[betas](0.00085, 0.012, 1000)).cumprod(0)
    kept = zero_terminal_shares(plain)
    assert torch.equal(kept, reference(20, betas=betas, rescale_betas_zero_snr=True).alphas_cumprod)
    assert float(kept[-1]) == 0.0
    assert float(kept[0]) == pytest.approx(float(plain[0]), rel=1e-6)
    assert bool((kept.diff() < 0).all())
    grid = ddim_grid(20, spacing=SPACINGS["trailing"], betas=BETA_SCHEDULES[betas], zero_terminal_snr=True)
    assert (float(grid.alpha[0]), float(grid.sigma[0])) == (0.0, 1.0)


@EVERY_SPACING
@pytest.mark.parametrize("num_steps", [1, 7, 20, 30, 50, 999])
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("one", [False, True])
@pytest.mark.parametrize("betas", BETA_SCHEDULES)
def test_timesteps_and_shares_are_those_of_diffusers(
    spacing: str, num_steps: int, offset: int, one: bool, betas: str
) -> None:
    theirs = reference(num_steps, betas=betas, timestep_spacing=spacing, steps_offset=offset, set_alpha_to_one=one)
    grid = ddim_grid(
        num_steps,
        spacing=SPACINGS[spacing],
        steps_offset=offset,
        set_alpha_to_one=one,
        betas=BETA_SCHEDULES[betas],
    )
    assert torch.equal(grid.model_time, theirs.timesteps)
    kept = theirs.alphas_cumprod[theirs.timesteps]
    assert torch.equal(grid.alpha[:-1].square().float(), kept)
    assert torch.equal(grid.sigma[:-1].square().float(), 1 - kept)
    landing = [t - 1000 // num_steps for t in theirs.timesteps.tolist()]
    ends = torch.stack([theirs.alphas_cumprod[t] if t >= 0 else theirs.final_alpha_cumprod for t in landing])
    assert torch.equal(grid.alpha_next.square().float(), ends)
    assert torch.equal(grid.sigma_next.square().float(), 1 - ends)
    assert grid.num_steps == num_steps
    assert bool((grid.sigma.diff() <= 0).all())


@pytest.mark.parametrize(
    ("spacing", "num_steps", "chained"),
    [
        ("leading", 20, True),
        ("leading", 30, True),
        ("trailing", 20, True),
        ("trailing", 30, False),
        ("linspace", 20, False),
    ],
)
def test_a_grid_says_where_steps_land_only_if_it_is_not_the_next_level(
    spacing: str, num_steps: int, chained: bool
) -> None:
    grid = ddim_grid(num_steps, spacing=SPACINGS[spacing])
    assert (grid.alpha_landing is None) == chained
    assert torch.equal(grid.alpha_next, grid.alpha[1:]) == chained
    levels = levels_at(grid, torch.arange(num_steps), torch.zeros(num_steps, 1, dtype=torch.float64))
    assert torch.equal(levels.alpha_next.flatten(), grid.alpha_next)
    assert torch.equal(levels.sigma_next.flatten(), grid.sigma_next)
    assert torch.equal(levels.alpha.flatten(), grid.alpha[:-1])


def test_the_roots_give_every_share_back_exactly() -> None:
    kept = (1 - scaled_linear_betas(0.00085, 0.012, 1000)).cumprod(0).flip(0)
    grid = NoiseGrid.variance_preserving(kept[:-1], kept[1:], torch.arange(999))
    assert grid.alpha_landing is None
    assert torch.equal(grid.alpha.square().float(), kept)
    assert torch.equal(grid.sigma.square().float(), 1 - kept)


@pytest.mark.golden
def test_shares_of_stable_diffusion() -> None:
    kept = (1 - scaled_linear_betas(0.00085, 0.012, 1000)).cumprod(0)
    expected = {
        0: 0.9991500,
        1: 0.9982960,
        21: 0.9803807,
        51: 0.9505241,
        101: 0.8929802,
        951: 0.0081550,
        981: 0.0057755,
        999: 0.0046601,
    }
    assert {t: float(kept[t]) for t in expected} == pytest.approx(expected, rel=1e-5)


@pytest.mark.golden
def test_timesteps_of_stable_diffusion() -> None:
    assert ddim_grid(20).model_time.tolist() == list(range(951, 0, -50))
    assert ddim_grid(50).model_time.tolist() == list(range(981, 0, -20))
    assert ddim_grid(20, spacing=SPACINGS["trailing"]).model_time.tolist()[-1] == 49
    assert ddim_grid(20, spacing=SPACINGS["linspace"]).model_time.tolist()[-1] == 0


@pytest.mark.parametrize("num_steps", [0, -1, 1001])
def test_step_counts_out_of_range_are_refused(num_steps: int) -> None:
    with pytest.raises(ValueError, match=rf"\[1, 1000\], got {num_steps}"):
        ddim_grid(num_steps)


def test_timesteps_beyond_training_are_refused() -> None:
    with pytest.raises(ValueError, match="beyond the 1000 of training"):
        ddim_grid(1000, steps_offset=1)
