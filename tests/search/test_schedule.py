"""Stages on a grid, and how many candidates they leave: integers known beforehand."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from difalign.core.types import Reading
from difalign.process.grids import flow_match_grid, uniform_sigmas
from difalign.search.schedule import (
    Stage,
    alive_by_step,
    half_even,
    half_up,
    halving,
    resolve,
    survivors,
)

T = 20


def decoded(sigma, branch):
    """What every judge reads that does not say otherwise."""
    return Reading() if branch is None else Reading((branch,))


def flux_grid():
    """FLUX.1 [dev] at 512 pixels, mu = 0.63."""
    return flow_match_grid(T, mu=0.63, sigmas=uniform_sigmas(T))


PUBLISHED = (Stage(0.4, step=2), Stage(0.4, step=6), Stage(0.5, step=11))


@pytest.mark.golden
def test_a_sigma_finds_its_step():
    checks = resolve(
        (Stage(0.4, sigma=0.944), Stage(0.4, sigma=0.814), Stage(0.5, sigma=0.606)), flux_grid(), reads=decoded
    )
    assert [check.step for check in checks] == [2, 6, 11]
    assert [round(check.sigma, 4) for check in checks] == [0.9441, 0.8142, 0.6057]


def test_the_same_sigma_is_another_step_of_another_grid():
    fine = flow_match_grid(2 * T, mu=0.63, sigmas=uniform_sigmas(2 * T))
    (check,) = resolve((Stage(0.4, sigma=0.814),), fine, reads=decoded)
    assert check.step == 12


@pytest.mark.golden
def test_invariant_4_alive_counts_of_the_published_schedule():
    alive = alive_by_step(38, resolve(PUBLISHED, flux_grid(), reads=decoded), T)
    assert alive == (38,) * 3 + (15,) * 4 + (6,) * 5 + (3,) * 8
    assert sum(alive) == 228


def test_halves_go_up_or_to_even():
    assert survivors(5, 0.5) == 3
    assert survivors(5, 0.5, rounding=half_even) == 2
    assert half_up(Fraction(7, 2)) == half_even(Fraction(7, 2)) == 4


def test_a_share_is_the_decimal_that_is_written():
    assert 0.145 * 100 < 14.5  # what a product of floats would round down
    assert survivors(100, 0.145) == 15


@given(alive=st.integers(1, 500), keep=st.floats(1e-6, 1.0) | st.integers(1, 600))
def test_at_least_one_survives_and_no_more_than_there_are(alive, keep):
    kept = survivors(alive, keep)
    assert 1 <= kept <= alive
    assert kept <= survivors(alive + 1, keep)  # more candidates never leave fewer
    assert survivors(alive, 1.0) == alive


@pytest.mark.parametrize("keep", [0.0, -0.1, 1.01, float("nan"), 0, -3, True])
def test_keep_out_of_range_is_refused(keep):
    with pytest.raises(ValueError, match="keep"):
        Stage(keep, sigma=0.5)


@pytest.mark.parametrize(
    "stages",
    [
        (Stage(0.5, sigma=0.6), Stage(0.5, sigma=0.8)),
        (Stage(0.5, sigma=0.8), Stage(0.5, sigma=0.8)),
        (Stage(0.5, sigma=0.815), Stage(0.5, sigma=0.813)),  # two levels, one step
        (Stage(0.5, step=6), Stage(0.5, step=2)),
        (Stage(0.5, step=6), Stage(0.5, sigma=0.95)),
    ],
)
def test_stages_that_do_not_fall_in_sigma_are_refused(stages):
    with pytest.raises(ValueError, match="must fall in sigma"):
        resolve(stages, flux_grid(), reads=decoded)


@pytest.mark.parametrize("stage", [Stage(0.5, step=T), Stage(0.5, sigma=1.2), Stage(0.5, sigma=0.01)])
def test_a_stage_outside_the_grid_is_refused(stage):
    with pytest.raises(ValueError, match="grid of 20"):
        resolve((stage,), flux_grid(), reads=decoded)


@pytest.mark.parametrize(
    "place", [{}, {"sigma": 0.5, "step": 3}, {"sigma": 0.0}, {"sigma": float("nan")}, {"step": -1}]
)
def test_a_stage_stands_at_one_place(place):
    with pytest.raises(ValueError, match=r"sigma|step"):
        Stage(0.5, **place)


def test_halving_spaces_geometrically():
    assert [stage.step + 1 for stage in halving(32, rounds=4, first_step=1) if stage.step is not None] == [2, 4, 8, 16]


@given(num_steps=st.integers(2, 60), data=st.data())
def test_halving_always_falls(num_steps, data):
    first = data.draw(st.integers(0, num_steps - 2))
    rounds = data.draw(st.integers(1, num_steps - 1 - first))
    checks = resolve(halving(num_steps, rounds=rounds, first_step=first), flow_match_grid(num_steps), reads=decoded)
    assert len(checks) == rounds
    assert checks[-1].step < num_steps - 1  # the last step's estimate is the sample itself


@pytest.mark.parametrize(("rounds", "first"), [(0, 2), (8, 2), (1, 9), (1, -1)])
def test_halving_without_room_is_refused(rounds, first):
    with pytest.raises(ValueError, match="rounds"):
        halving(10, rounds=rounds, first_step=first)
