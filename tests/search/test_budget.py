"""What a search costs, and the most candidates that a budget pays for."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from difalign.search.budget import (
    Budget,
    Cost,
    Price,
    Walk,
    forecast,
    largest,
    published_largest,
    published_rate,
)
from difalign.search.schedule import Check, half_even, half_up

T = 20
PUBLISHED = Walk((Check(2, 0.944, 0.4), Check(6, 0.814, 0.4), Check(11, 0.606, 0.5)), T, rounding=half_even)
BEST_OF_N = Walk((), T)
FLUX = Price(nfe=9.9, decode=1.2)  # the constants of the released simulator, one number for a look


@st.composite
def walks(draw: st.DrawFn) -> Walk:
    num_steps = draw(st.integers(1, 24))
    steps = sorted(draw(st.sets(st.integers(0, num_steps - 1), max_size=4)))
    keep = st.integers(1, 12) | st.integers(1, 100).map(lambda percent: percent / 100)
    checks = tuple(Check(step, 1 - step / num_steps, draw(keep)) for step in steps)
    return Walk(checks, num_steps, branches=draw(st.sampled_from([1, 2])), scored=draw(st.booleans()))


prices = st.builds(Price, nfe=st.floats(0.01, 30), decode=st.floats(0, 5), score=st.floats(0, 5))


@pytest.mark.golden
def test_invariant_4_the_published_example_in_full():
    plan = forecast(38, PUBLISHED)
    assert plan.alive == (38,) * 3 + (15,) * 4 + (6,) * 5 + (3,) * 8
    assert plan.finished == 3
    assert plan.cost == Cost(nfe=228, decodes=62, scores=62, previews=59)
    assert FLUX.of(plan.cost) == 2331.6  # of a budget of 2000


@pytest.mark.golden
def test_invariant_4_the_published_accounting():
    assert published_rate(PUBLISHED, price=FLUX) == 51.864
    assert published_rate(BEST_OF_N, price=FLUX) == 199.2
    assert published_largest(2000, PUBLISHED, price=FLUX) == 38
    assert published_largest(2000, BEST_OF_N, price=FLUX) == 10


@pytest.mark.golden
def test_the_published_accounting_gives_every_candidate_an_evaluation():
    # By whole evaluations and without rounding a candidate of the example costs 61.764.
    many = 10**6
    exact = FLUX.of(forecast(many, PUBLISHED).cost) / many
    assert exact == pytest.approx(61.764, abs=1e-4)
    assert exact - published_rate(PUBLISHED, price=FLUX) == pytest.approx(FLUX.nfe, abs=1e-4)


def test_the_published_accounting_is_an_option_and_its_plan_says_what_it_really_costs():
    budget, prices = Budget(tflops=2000), {"tflops": FLUX}
    published = budget.plan(PUBLISHED, prices=prices, accounting="published")
    exact = budget.plan(PUBLISHED, prices=prices)
    assert (published.candidates, FLUX.of(published.cost)) == (38, 2331.6)
    assert FLUX.of(exact.cost) <= 2000 < FLUX.of(published.cost)
    with pytest.raises(ValueError, match="exact, published"):
        budget.plan(PUBLISHED, prices=prices, accounting="guess")
    with pytest.raises(ValueError, match="shares only"):
        published_rate(Walk((Check(2, 0.9, 3),), T), price=FLUX)


@pytest.mark.golden
@pytest.mark.parametrize(("budget", "candidates"), [(19, None), (20, 1), (39, 1), (40, 2), (1000, 50)])
def test_best_of_n_under_a_budget_of_evaluations(budget, candidates):
    if candidates is None:
        with pytest.raises(ValueError, match="give at least 20"):
            Budget(nfe=budget).plan(BEST_OF_N)
    else:
        assert Budget(nfe=budget).plan(BEST_OF_N).candidates == candidates


@given(walk=walks(), price=prices, candidates=st.integers(1, 200), share=st.floats(0, 1))
def test_invariant_5_the_plan_is_maximal_and_monotone(walk, price, candidates, share):
    least, next_one = (price.of(forecast(n, walk).cost) for n in (candidates, candidates + 1))
    budget = max(least + share * (next_one - least), price.of(forecast(1, walk).cost) * 1.001)
    planned = largest(budget, walk, price=price)
    cost, more = (price.exactly(forecast(n, walk).cost) for n in (planned, planned + 1))
    assert cost <= Fraction(repr(budget)) < more
    assert abs(planned - candidates) <= 1
    assert planned <= largest(budget * 1.5, walk, price=price)


@given(walk=walks(), price=prices)
def test_the_least_budget_is_named_and_works(walk, price):
    with pytest.raises(ValueError, match="give at least") as refused:
        largest(price.of(forecast(1, walk).cost) * 0.99, walk, price=price)
    least = float(str(refused.value).rsplit(" ", 1)[1])
    assert largest(least, walk, price=price) == 1


@given(walk=walks(), candidates=st.integers(1, 100))
def test_an_estimate_of_step_s_costs_s_plus_1_and_guidance_doubles(walk, candidates):
    plan = forecast(candidates, walk)
    sizes = [plan.alive[check.step] for check in walk.checks]
    ends = [check.step + 1 for check in walk.checks]
    spans = zip([*sizes, plan.alive[-1]], [*ends, walk.num_steps], [0, *ends], strict=True)
    assert plan.cost.nfe == walk.branches * sum(alive * (end - start) for alive, end, start in spans)
    assert plan.cost.scores == plan.finished + (sum(sizes) if walk.scored else 0) == plan.cost.decodes


def test_decodes_and_scores_are_charged_where_they_have_a_price():
    free, charged = Price(), Price(decode=0.5, score=0.25)
    cost = forecast(38, PUBLISHED).cost
    assert charged.of(cost) - free.of(cost) == 62 * 0.75
    assert largest(400, PUBLISHED, price=charged) < largest(400, PUBLISHED, price=free)


def test_invariant_1_keeping_everybody_costs_what_best_of_n_does_but_the_looks():
    looks = Walk((Check(3, 0.9, 1.0), Check(9, 0.6, 1.0)), T)
    kept, plain = forecast(7, looks).cost, forecast(7, BEST_OF_N).cost
    assert kept.nfe == plain.nfe == 7 * T
    assert kept.scores == kept.decodes == 3 * 7
    assert plain.scores == 7


@pytest.mark.parametrize(
    "amounts",
    [{}, {"nfe": 10, "seconds": 2}, {"candidates": 4, "tflops": 1.0}, {"candidates": 0}, {"candidates": 3, "nfe": 0}],
)
def test_no_or_two_budgets_are_refused(amounts):
    with pytest.raises(ValueError, match=r"exactly one budget|at least 1 candidate"):
        Budget(**amounts)


@pytest.mark.parametrize("amount", [0, -4, float("nan"), float("inf")])
def test_an_impossible_amount_is_refused(amount):
    with pytest.raises(ValueError, match="finite number above 0"):
        Budget(nfe=amount).plan(BEST_OF_N)


def test_a_unit_without_a_price_is_refused():
    with pytest.raises(ValueError, match="seconds needs the price"):
        Budget(seconds=3).plan(BEST_OF_N)
    assert Budget(seconds=3).plan(BEST_OF_N, prices={"seconds": Price(0.1)}).candidates == 1


@pytest.mark.parametrize("wrong", [{"nfe": 0}, {"nfe": -1}, {"decode": float("nan")}, {"score": -0.1}])
def test_impossible_prices_are_refused(wrong):
    with pytest.raises(ValueError, match=r"price|cost"):
        Price(**wrong)


def test_the_exact_plan_rounds_as_the_walk_does():
    up, even = (Walk((Check(0, 1.0, 0.5),), 2, rounding=rounding) for rounding in (half_up, half_even))
    assert Budget(candidates=5).plan(up).finished == 3
    assert Budget(candidates=5).plan(even).finished == 2
    assert Budget(candidates=5).plan(up, accounting="published").finished == 2
