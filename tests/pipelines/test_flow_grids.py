"""SD3's noise levels: the adapter does not import the process layer, so their two ways to a grid are compared here."""

from __future__ import annotations

import pytest
import torch

from difalign.pipelines.flow_grids import sd3_grid
from difalign.process.grids import dynamic_mu, flow_match_grid, grid_from_scheduler
from tests.tiny_models import tiny_sd3


@pytest.mark.parametrize("num_steps", [1, 2, 10, 28])
@pytest.mark.parametrize("dynamic_shifting", [False, True])
def test_equals_the_grids_of_the_process_layer(num_steps: int, dynamic_shifting: bool):
    scheduler = tiny_sd3(dynamic_shifting=dynamic_shifting).scheduler
    grid = sd3_grid(scheduler, num_steps, image_tokens=1024)
    mu = dynamic_mu(1024) if dynamic_shifting else None
    others = [grid_from_scheduler(scheduler, num_steps, mu=mu)]  # type: ignore[arg-type]
    if not dynamic_shifting:
        others.append(flow_match_grid(num_steps, shift=3.0))
    for other in others:
        assert torch.equal(grid.sigma, other.sigma)
        assert torch.equal(grid.alpha, other.alpha)
        assert torch.equal(grid.model_time, other.model_time)
    assert grid.num_steps == num_steps


def test_more_image_tokens_keep_more_noise_under_a_dynamic_shift_only():
    for dynamic_shifting in (False, True):
        scheduler = tiny_sd3(dynamic_shifting=dynamic_shifting).scheduler
        few, many = (sd3_grid(scheduler, 8, image_tokens=tokens).sigma for tokens in (256, 4096))
        if dynamic_shifting:
            assert bool((many[1:-1] > few[1:-1]).all())
        else:
            assert torch.equal(many, few)


def test_leaves_the_scheduler_alone():
    scheduler = tiny_sd3().scheduler
    scheduler.set_timesteps(5)
    before = scheduler.timesteps.clone()
    sd3_grid(scheduler, 9, image_tokens=16)
    assert torch.equal(scheduler.timesteps, before)


def test_refuses_no_steps():
    with pytest.raises(ValueError, match="num_steps=0"):
        sd3_grid(tiny_sd3().scheduler, 0, image_tokens=16)
