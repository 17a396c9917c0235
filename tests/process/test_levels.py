"""Looking levels up: both sides of a step, per row, in the latents' rank, device and dtype."""

from __future__ import annotations

import pytest
import torch

from difalign.process.grids import flow_match_grid
from difalign.process.levels import levels_at


@pytest.mark.parametrize("rank", [2, 3, 4, 5])
def test_levels_stand_on_both_sides_of_each_rows_step(rank: int) -> None:
    grid = flow_match_grid(5, shift=3.0)
    steps = torch.tensor([4, 0, 2])
    levels = levels_at(grid, steps, torch.zeros(3, *([2] * (rank - 1))))
    assert levels.sigma.shape == (3, *([1] * (rank - 1)))
    assert torch.equal(levels.sigma.flatten(), grid.sigma[steps])
    assert torch.equal(levels.sigma_next.flatten(), grid.sigma[steps + 1])
    assert torch.equal(levels.alpha.flatten(), 1 - grid.sigma[steps])
    assert torch.equal(levels.alpha_next.flatten(), 1 - grid.sigma[steps + 1])
    assert (levels.dt < 0).all()


def test_an_int_step_is_the_same_step_for_every_row() -> None:
    grid, like = flow_match_grid(5), torch.zeros(3, 2)
    one, many = levels_at(grid, 2, like), levels_at(grid, torch.full((3,), 2), like)
    assert torch.equal(one.sigma, many.sigma)
    assert torch.equal(one.dt, many.dt)


def test_the_dtype_follows_the_latents_and_never_falls_below_float32() -> None:
    grid = flow_match_grid(5)
    for given, expected in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        assert levels_at(grid, 0, torch.zeros(1, 2, dtype=given)).sigma.dtype == expected


def test_steps_must_be_one_per_row_and_inside_the_grid() -> None:
    grid, like = flow_match_grid(5), torch.zeros(3, 2)
    with pytest.raises(ValueError, match="3 rows"):
        levels_at(grid, torch.tensor([0, 1]), like)
    with pytest.raises(ValueError, match=r"\[0, 4\]"):
        levels_at(grid, 5, like)
    assert levels_at(grid, torch.zeros(0, dtype=torch.int64), torch.zeros(0, 2)).sigma.shape == (0, 1)
