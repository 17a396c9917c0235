"""Schedules replayed on recorded scores: against brute force, the engine, and what is known in advance."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from difalign.core.expected_best import expected_best
from difalign.rollout import plans
from difalign.search.budget import Price, Walk, forecast
from difalign.search.engine import search
from difalign.search.methods import pruned
from difalign.search.optimise import Recording, expected, optimise, replay, schedules
from difalign.search.schedule import Check, Stage, survivors
from tests.search.judges import Linear
from tests.toys import elementwise_pipeline

T = 6
EVEN = (0, 2, 4, 6)


def recording(*, prompts=8, candidates=6, seed=0, noise=(3.0, 0.3)):
    source = torch.Generator().manual_seed(seed)
    final = torch.randn(prompts, candidates, generator=source)
    blur = torch.randn(prompts, candidates, 2, generator=source) * torch.tensor(noise)
    return Recording((1, 3), (0.8, 0.4), final[..., None] + blur, final, T)


def by_hand(made, checks, prompt, chosen):
    """One prompt in plain Python."""
    alive = sorted(chosen)
    for check in checks:
        level = made.on_way[prompt, :, made.steps.index(check.step)].tolist()
        alive = sorted(sorted(alive, key=lambda i: (-level[i], i))[: survivors(len(alive), check.keep)])
    return max(made.final[prompt].tolist()[i] for i in alive)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 99), size=st.integers(1, 6), data=st.data())
def test_replay_equals_plain_python(seed, size, data):
    made = recording(seed=seed)
    checks = data.draw(st.sampled_from(list(schedules(made, keeps=(0.3, 0.5), max_stages=2))))
    chosen = torch.stack([torch.randperm(6, generator=torch.Generator().manual_seed(p))[:size] for p in range(8)])
    hand = [by_hand(made, checks, p, chosen[p].tolist()) for p in range(8)]
    assert replay(made, checks, chosen).tolist() == pytest.approx(hand, abs=0)


def test_the_optimum_is_that_of_brute_force():
    # Six candidates are all there are: schedules that start six have one choice, others all subsets in the limit.
    made, budget = recording(prompts=9, noise=(1.0, 0.1)), 20.0
    best = optimise(made, budget=budget, tune_on=EVEN, keeps=(0.3, 0.6), draws=600)
    tried = {}
    for checks in schedules(made, keeps=(0.3, 0.6), max_stages=2):
        walk = Walk(checks, T)
        sizes = [n for n in range(1, 7) if forecast(n, walk).cost.nfe <= budget < forecast(n + 1, walk).cost.nfe]
        if sizes:
            subsets = list(itertools.combinations(range(6), sizes[0]))
            means = [by_hand(made, checks, p, subset) for p in EVEN for subset in subsets]
            tried[checks, sizes[0]] = sum(means) / len(means)
    assert tried[best.checks, best.candidates] == max(tried.values())
    assert best.tuned == pytest.approx(max(tried.values()), abs=0.05)
    assert best.reported.shape == (5,)


def test_the_choice_hears_the_tuning_prompts_only():
    made = recording(prompts=8)
    upset = Recording(made.steps, made.sigmas, made.on_way.clone(), made.final.clone(), T)
    others = [row for row in range(8) if row not in EVEN]
    upset.final[others] = -upset.final[others] * 50
    first, second = (optimise(each, budget=18, tune_on=EVEN) for each in (made, upset))
    assert (first.checks, first.candidates, first.tuned) == (second.checks, second.candidates, second.tuned)
    assert first.mean != second.mean


def test_a_perfect_preview_is_pruned_hard_and_a_blind_one_not_at_all():
    perfect = recording(prompts=40, candidates=18, noise=(0.0, 0.0))
    assert optimise(perfect, budget=42, tune_on=range(20), keeps=(0.25,)).checks[0].step == 1
    source = torch.Generator().manual_seed(1)
    blind = Recording((4,), (0.2,), torch.randn(40, 18, 1, generator=source), perfect.final, T)
    assert optimise(blind, budget=60, tune_on=range(20), keeps=(0.25,)).checks == ()


def test_replay_finds_what_the_engine_finds():
    pipeline, prompts, n = elementwise_pipeline(), ("-0.5", "0.8"), 9
    plan = plans.deterministic(T)
    everybody = pruned((Stage(1.0, step=1), Stage(1.0, step=3)))
    seen = search(pipeline, Linear(), prompts, method=everybody, candidates=n, plan=plan).found

    def in_order(look):
        return [look.scores[look.index.index(i)] for i in range(n)]

    made = Recording(
        (1, 3),
        (0.8, 0.4),
        torch.tensor([[in_order(look) for look in found.looks] for found in seen]).transpose(1, 2),
        torch.tensor([in_order(found.finish) for found in seen]),
        T,
    )
    method = pruned((Stage(0.4, step=1), Stage(0.5, step=3)))
    live = search(pipeline, Linear(), prompts, method=method, candidates=n, plan=plan).found
    played = replay(made, (Check(1, 0.8, 0.4), Check(3, 0.4, 0.5)), torch.arange(n).expand(2, n))
    assert played.tolist() == [found.score for found in live]


def test_invariant_13_drawn_means_come_near_the_closed_form():
    made = recording(prompts=50, candidates=20)
    drawn, exact = expected(made, (), 5, draws=200, seed=0), expected_best(made.final, 5)
    assert abs(float((drawn - exact).mean())) < 4 * 0.7 / (50 * 200) ** 0.5


def test_what_cannot_be_played_is_refused():
    made = recording()
    with pytest.raises(ValueError, match="need both"):
        optimise(made, budget=20, tune_on=range(8))
    with pytest.raises(ValueError, match="no schedule can be played"):
        optimise(made, budget=3, tune_on=EVEN)
    with pytest.raises(ValueError, match="not recorded"):
        replay(made, (Check(2, 0.6, 0.5),), torch.zeros(8, 1, dtype=torch.int64))
    with pytest.raises(ValueError, match="cannot draw"):
        expected(made, (), 7, draws=3, seed=0)
    for steps, final in (
        ((3, 1), made.final),
        ((1, 9), made.final),
        ((1,), made.final),
        ((1, 3), made.final * torch.nan),
    ):
        with pytest.raises(ValueError, match=r"steps|recording"):
            Recording(steps, (0.8, 0.4)[: len(steps)], made.on_way, final, T)


def test_prices_and_guidance_are_charged():
    made = recording(candidates=12)
    plain = optimise(made, budget=24, tune_on=EVEN, max_stages=0)
    guided = optimise(made, budget=24, tune_on=EVEN, max_stages=0, branches=2)
    dear = optimise(made, budget=24, tune_on=EVEN, max_stages=0, price=Price(1.0, 2.0))
    assert [each.candidates for each in (plain, guided, dear)] == [4, 2, 3]
