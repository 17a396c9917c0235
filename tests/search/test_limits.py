"""A cap that holds while a search runs, and a search that is taken up where it was killed."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from difalign.rollout import plans
from difalign.search.budget import Price, Walk, forecast
from difalign.search.engine import search
from difalign.search.limits import Limit
from difalign.search.methods import pruned
from difalign.search.schedule import Stage
from difalign.search.state import load_state, save_state
from tests.search.judges import Linear
from tests.toys import elementwise_pipeline

T = 6
N = 7
PROMPTS = ("-0.5", "0.8")
METHOD = pruned((Stage(0.5, step=1), Stage(2, step=3)))
PRICE = Price(1.0, 0.25, 0.125)
LEAST = 2 * (T + 0.375)


def run(*, pipeline=None, micro_batch=3, method=METHOD, seed=0, **settings):
    return search(
        pipeline or elementwise_pipeline(),
        Linear(),
        PROMPTS,
        method=method,
        candidates=N,
        plan=plans.plain(T, 0.5),
        micro_batch=micro_batch,
        seed=seed,
        **settings,
    )


WHOLE = run()
FULL = PRICE.of(WHOLE.cost)


@settings(max_examples=25, deadline=None)
@given(amount=st.floats(LEAST, FULL * 1.1), micro_batch=st.integers(1, 20))
def test_invariant_21_a_cap_is_never_exceeded_and_what_comes_back_is_whole(amount, micro_batch):
    result = run(limit=Limit(amount, PRICE), micro_batch=micro_batch)
    assert PRICE.of(result.cost) <= amount
    assert result.cut_short == (result.cost != result.planned)
    for found in result.found:
        assert found.winner in found.finish.index
        assert found.score == max(found.finish.scores)
        if found.looks:  # the leader of the last look, or better
            assert set(found.finish.index) <= set(found.looks[-1].kept)
            assert found.looks[-1].kept[0] in found.finish.index


def test_invariant_21_a_cap_above_the_plan_changes_nothing():
    capped = run(limit=Limit(FULL * 2, PRICE))
    assert not capped.cut_short
    assert [found.winner for found in capped.found] == [found.winner for found in WHOLE.found]


def test_invariant_21_a_cap_by_the_clock_is_exceeded_by_less_than_a_micro_batch():
    pipeline = elementwise_pipeline()
    clock = lambda: 1.1 * sum(pipeline.batches)  # noqa: E731  # a tenth slower than foretold
    result = run(pipeline=pipeline, limit=Limit(40.0, Price(), clock))
    assert result.cut_short
    assert clock() <= 40.0 + 1.1 * 3
    assert all(found.winner is not None for found in result.found)


def test_a_finished_candidate_of_a_search_cut_short_is_the_one_of_the_whole_search():
    amount = (LEAST + FULL) / 2
    for cut, whole in zip(run(limit=Limit(amount, PRICE)).found, run(method=pruned(())).found, strict=True):
        for row, index in enumerate(cut.finish.index):
            assert torch.equal(cut.latents[row], whole.latents[whole.finish.index.index(index)])


def test_a_cap_below_one_candidate_of_each_prompt_is_refused():
    with pytest.raises(ValueError, match=r"does not pay for one candidate of each of 2 prompts, which costs 12\.75"):
        run(limit=Limit(LEAST * 0.99, PRICE))


@pytest.mark.parametrize("stage", [0, 1])
def test_invariant_22_a_search_killed_after_a_stage_goes_on_from_there(tmp_path, stage):
    class Killed(Exception):
        pass

    def keep_then_die(state):
        save_state(state, tmp_path / "state.safetensors")
        if len(state.looks[0]) == stage + 1:
            raise Killed

    first, second = elementwise_pipeline(), elementwise_pipeline()
    with pytest.raises(Killed):
        run(pipeline=first, after_look=keep_then_die)
    assert [path.name for path in tmp_path.iterdir()] == ["state.safetensors"]
    result = run(pipeline=second, state=load_state(tmp_path / "state.safetensors"))
    assert sum(first.batches) + sum(second.batches) == WHOLE.cost.nfe  # nothing is evaluated twice
    assert result.cost == WHOLE.cost == result.planned
    for a, b in zip(result.found, WHOLE.found, strict=True):
        assert torch.equal(a.latents, b.latents)
        assert (a.winner, a.score, a.looks, a.finish) == (b.winner, b.score, b.looks, b.finish)


def test_a_state_of_another_search_is_refused(tmp_path):
    states = []
    run(after_look=states.append)
    for changed in ({"seed": 1}, {"method": pruned((Stage(0.4, step=1),))}):
        with pytest.raises(ValueError, match="another search"):
            run(state=states[0], **changed)
    save_file({"latents": torch.zeros(1)}, tmp_path / "other")
    with pytest.raises(ValueError, match="not the state of a search"):
        load_state(tmp_path / "other")


def test_progress_tells_what_is_spent_of_what_is_planned():
    seen = []
    run(progress=lambda spent, planned: seen.append((spent, planned)))
    spent = [each.nfe + each.decodes for each, _ in seen]
    assert spent == sorted(spent)
    assert {dataclasses.astuple(planned) for _, planned in seen} == {dataclasses.astuple(WHOLE.planned)}
    assert seen[-1][0] == WHOLE.cost
    checks = METHOD.walk(elementwise_pipeline().grid(T), judge=Linear()).checks
    assert WHOLE.planned == forecast(N, Walk(checks, T)).cost.times(2)
