"""The engine on the exact toy flow: winners that depend on seeds alone, at the cost that was foretold."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from difalign.core.types import RewardOutput
from difalign.process.diffusion import DiffusionProcess
from difalign.process.diffusion_grids import ddim_grid
from difalign.rollout import plans
from difalign.rollout.engine import rollout
from difalign.search.candidates import candidate_seeds, start
from difalign.search.engine import search
from difalign.search.methods import best_of_n, pruned, random_pruning, successive_halving
from difalign.search.schedule import Stage
from tests.search.judges import GuidedToy, LatentReader, Linear, Scorer, ShowingToy
from tests.toys import ElementwisePolicy, ToyPipeline, elementwise_pipeline

T = 8
N = 11
PROMPTS = ("-0.5", "0.0", "0.8")
PRUNED = pruned((Stage(0.5, step=2), Stage(2, step=5)))
ODE = plans.deterministic(T)
SDE = plans.plain(T, 0.7)


def run(method=PRUNED, *, prompts=PROMPTS, pipeline=None, reward=None, plan=ODE, candidates=N, **settings):
    return search(
        pipeline or elementwise_pipeline(),
        reward or Linear(),
        prompts,
        method=method,
        candidates=candidates,
        plan=plan,
        **settings,
    )


def showing() -> ShowingToy:
    return ShowingToy(ElementwisePolicy())


def walked_alone(prompt: str, index: int, *, plan=ODE):
    """The final latent of one candidate by the rollout engine, beside nobody."""
    pipeline = elementwise_pipeline()
    return rollout(
        pipeline,
        (plan,),
        condition=pipeline.encode([prompt]),
        prompt_index=torch.tensor([0]),
        root_seeds=[candidate_seeds(0, prompt, N)[index]],
    ).final[0]


def assert_same(first, second):
    for a, b in zip(first.found, second.found, strict=True):
        assert torch.equal(a.latents, b.latents)
        for field in dataclasses.fields(a):
            if field.name not in {"latents", "picture"}:
                assert getattr(a, field.name) == getattr(b, field.name), field.name


def test_invariant_1_keeping_everybody_is_best_of_n():
    everybody = run(pruned((Stage(1.0, step=1), Stage(1.0, step=4))))
    plain = run(best_of_n())
    for a, b in zip(everybody.found, plain.found, strict=True):
        assert (a.winner, a.score) == (b.winner, b.score)
        rows = [a.finish.index.index(i) for i in b.finish.index]
        assert torch.equal(a.latents[rows], b.latents)
    assert everybody.cost.nfe == plain.cost.nfe == len(PROMPTS) * N * T
    assert everybody.cost.decodes == everybody.cost.scores == 3 * plain.cost.scores == len(PROMPTS) * 3 * N


def test_invariant_2_one_stage_that_keeps_one_is_greedy():
    for found in run(pruned((Stage(1, step=3),))).found:
        (look,) = found.looks
        assert found.winner == look.index[max(range(N), key=lambda i: look.scores[i])]
        assert found.finish.index == (found.winner,)


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_invariant_3_a_perfect_student_finds_the_winner_under_any_schedule(data):
    best = BEST_OF_N
    steps = sorted(data.draw(st.sets(st.integers(0, T - 1), max_size=3)))
    keep = st.integers(1, 5) | st.floats(0.05, 1.0)
    method = pruned([Stage(data.draw(keep), step=step) for step in steps])
    finals = {tuple(at): score for at, score in STUDENT}
    found = search(
        elementwise_pipeline(), Linear(), PROMPTS, method=method, candidates=N, plan=ODE,
        preview=Scorer(lambda row, sigma: finals[tuple(row.tolist())]),
    ).found  # fmt: skip
    assert [each.winner for each in found] == best


def _perfect():
    """The clean estimate of every candidate at every step, with the score that the candidate will end with."""
    pipeline, judge = elementwise_pipeline(), Linear()
    known, best = [], []
    for prompt in PROMPTS:
        everybody = [Stage(1.0, step=step) for step in range(T)]
        seen = []
        recorder = Scorer(lambda row, sigma, seen=seen: seen.append(row.tolist()) or 0.0)
        found = search(
            pipeline, judge, [prompt], method=pruned(everybody), candidates=N, plan=ODE, preview=recorder
        ).found[0]
        final = dict(zip(found.finish.index, found.finish.scores, strict=True))
        known += [(row, final[i % N]) for i, row in enumerate(seen)]
        best.append(found.winner)
    return known, best


STUDENT, BEST_OF_N = _perfect()


def test_invariant_3_a_blind_student_is_best_of_those_left():
    prompts = tuple(str(i / 1000) for i in range(400))
    result = run(random_pruning((Stage(3, step=1),)), prompts=prompts, candidates=6, micro_batch=1000)
    left = [found.finish.index for found in result.found]
    share = torch.tensor([sum(i in index for index in left) / len(left) for i in range(6)])
    assert (share - 0.5).abs().max() < 4 * math.sqrt(0.25 / len(left))  # everybody survives equally often
    assert all(len(index) == 3 for index in left)
    assert result.cost.decodes == 3 * len(prompts)  # nothing was looked at on the way


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_invariant_4_what_is_counted_is_what_was_planned(data):
    steps = sorted(data.draw(st.sets(st.integers(0, T - 1), max_size=3)))
    stages = [Stage(data.draw(st.integers(1, 6) | st.floats(0.05, 1.0)), step=step) for step in steps]
    branches = data.draw(st.sampled_from([1, 2]))
    make = GuidedToy if branches == 2 else ToyPipeline
    pipeline, judge = make(network=ElementwisePolicy()), Linear()
    rows = []
    pipeline.network.register_forward_hook(lambda module, inputs, output: rows.append(inputs[0].shape[0]))
    method = data.draw(st.sampled_from([pruned, random_pruning]))(stages)
    micro_batch = data.draw(st.integers(1, 9))
    result = run(
        method, pipeline=pipeline, reward=judge, branches=branches, micro_batch=micro_batch,
        candidates=data.draw(st.integers(1, 9)), prompts=PROMPTS[: data.draw(st.integers(1, 3))],
    )  # fmt: skip
    assert result.cost == result.planned
    assert result.cost.nfe == sum(rows)
    assert result.cost.scores == judge.rows
    assert max(rows) <= micro_batch


@pytest.mark.parametrize("plan", [ODE, SDE], ids=["ode", "sde"])
@pytest.mark.parametrize("micro_batch", [1, 2, 7])
def test_invariant_6_any_batch_size_gives_the_same_search(plan, micro_batch):
    assert_same(run(plan=plan, micro_batch=1000), run(plan=plan, micro_batch=micro_batch))


@pytest.mark.parametrize("plan", [ODE, SDE], ids=["ode", "sde"])
def test_invariant_6_prompts_split_and_in_any_order_give_the_same_search(plan):
    whole = run(plan=plan)
    parts = [run(plan=plan, prompts=prompts) for prompts in (PROMPTS[:1], PROMPTS[1:])]
    joined = dataclasses.replace(whole, found=parts[0].found + parts[1].found)
    assert_same(whole, joined)
    turned = run(plan=plan, prompts=PROMPTS[::-1])
    assert_same(whole, dataclasses.replace(turned, found=turned.found[::-1]))


@pytest.mark.parametrize("plan", [ODE, SDE], ids=["ode", "sde"])
def test_invariant_6_a_kept_candidate_ends_where_it_ends_alone(plan):
    for found in run(plan=plan).found:
        for row, index in enumerate(found.finish.index):
            assert torch.equal(found.latents[row], walked_alone(found.prompt, index, plan=plan))


def test_invariant_6_fewer_candidates_are_the_first_of_more_and_no_two_share_noise():
    few, many = (start(elementwise_pipeline(), PROMPTS, count=count, seed=3) for count in (8, 16))
    first = many.rows([i for i in range(len(many)) if many.index[i] < 8])
    assert first.seeds == few.seeds
    assert torch.equal(first.latents, few.latents)
    assert float(torch.pdist(many.latents).min()) > 0
    assert torch.equal(run(best_of_n(), candidates=5).found[0].latents, run(best_of_n()).found[0].latents[:5])


def test_invariant_7_the_last_estimate_of_the_ode_is_the_sample():
    seen = []
    recorder = Scorer(lambda row, sigma: seen.append(row) or 0.0)
    found = run(pruned((Stage(1.0, step=T - 1),)), prompts=("0.0",), preview=recorder).found[0]
    torch.testing.assert_close(torch.stack(seen), found.latents, rtol=0, atol=1e-6)


def test_estimates_are_judged_with_their_sigma_and_finished_samples_without():
    pipeline, judge = elementwise_pipeline(), Linear()
    found = run(pipeline=pipeline, reward=judge, micro_batch=1000).found[0]
    grid = pipeline.grid(T)
    assert judge.sigmas == [float(grid.sigma[2]), float(grid.sigma[5]), None]
    assert [look.sigma for look in (*found.looks, found.finish)] == judge.sigmas


def test_the_reward_for_clean_pictures_decides_and_levels_are_never_compared():
    # On the way the scores are a thousand times higher, and upside down.
    preview = Scorer(lambda row, sigma: 1000 - float(row.mean()))
    for found in run(preview=preview).found:
        finals = dict(zip(found.finish.index, found.finish.scores, strict=True))
        assert found.score == max(finals.values()) == finals[found.winner]
        assert set(finals) == set(found.looks[-1].kept)


def test_successive_halving_is_a_schedule():
    result = run(successive_halving(T, rounds=2, first_step=1), candidates=8)
    assert [len(found.finish.index) for found in result.found] == [2, 2, 2]
    assert result.cost == result.planned


def test_a_diffusion_model_is_searched_by_the_same_engine():
    grid = ddim_grid(T)
    for eta in (0.0, 1.0):
        pipeline = ToyPipeline(network=ElementwisePolicy(), process=DiffusionProcess())
        plan = plans.plain(T, eta) if eta else ODE
        both = [
            run(pipeline=pipeline, grid=grid, plan=plan, method=pruned((Stage(3, sigma=0.9),)), micro_batch=size)
            for size in (3, 1000)
        ]
        assert_same(*both)
        assert both[0].cost == both[0].planned


def test_equal_scores_go_to_the_lower_index():
    found = run(pruned((Stage(4, step=2), Stage(2, step=4))), reward=Scorer(lambda row, sigma: 1.0)).found[0]
    assert [look.kept for look in found.looks] == [(0, 1, 2, 3), (0, 1)]
    assert found.winner == 0


def test_a_candidate_without_a_score_survives_only_for_want_of_others():
    sometimes = Scorer(lambda row, sigma: float(row.mean()) if row[0] > row[1] or sigma is None else math.nan)
    found = run(pruned((Stage(N - 1, step=2),)), preview=sometimes, prompts=("0.8",)).found[0]
    (look,) = found.looks
    scored = sum(not math.isnan(score) for score in look.scores)
    assert 0 < scored < N - 1
    assert not any(math.isnan(look.scores[index]) for index in look.kept[:scored])
    assert list(look.kept[scored:]) == sorted(look.kept[scored:])
    assert set(look.errors) == {index for index in look.index if math.isnan(look.scores[index])}


def test_where_no_finished_sample_has_a_score_there_is_no_winner_and_the_reasons_are_told():
    found = run(reward=Scorer(lambda row, sigma: math.nan if sigma is None else 1.0)).found[0]
    assert found.winner is found.score is found.picture is None
    assert set(found.finish.errors) == set(found.finish.index)
    assert "finite" in next(iter(found.finish.errors.values()))


def test_invariant_23_scoring_the_winner_again_gives_its_score():
    pipeline, judge = elementwise_pipeline(), Linear()
    for found in run(pipeline=pipeline, reward=judge).found:
        assert found.winner is not None
        latent = found.latents[found.finish.index.index(found.winner)]
        again = judge.score(pipeline.decode(latent[None]), [found.prompt])
        assert float(again.scores) == found.score == max(found.finish.scores)
        assert found.seeds == candidate_seeds(0, found.prompt, N)


def test_pictures_of_looks_are_kept_on_request():
    kept, plain = run(keep_pictures=True).found[0], run().found[0]
    assert [look.pictures is None for look in (*plain.looks, plain.finish)] == [True, True, True]
    for look in (*kept.looks, kept.finish):
        assert look.pictures is not None
        assert look.pictures.shape == (len(look.index), 8)
        assert look.pictures.dtype == torch.uint8
    assert kept.winner is not None
    assert kept.picture is not None
    assert plain.picture is not None
    assert torch.equal(kept.picture, plain.picture)


class Compares(Linear):
    groupwise = True


class Talkative(Linear):
    def score(self, media, prompts, *, metadata=None, sigma=None):
        return RewardOutput(torch.zeros(len(prompts) + 1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompts": ()}, "one or more texts"),
        ({"prompts": "a circle"}, "one or more texts"),
        ({"plan": plans.plain(T, 0.7, children=2)}, "may not fork"),
        ({"grid": elementwise_pipeline().grid(T + 1)}, "plan has 8 steps and the grid 9"),
        ({"micro_batch": 0}, "micro_batch"),
        ({"candidates": 0}, "at least 1 candidate"),
        ({"metadata": [{}]}, "metadata has 1 entries for 3"),
        ({"preview": Compares()}, "compares the samples"),
        ({"reward": Talkative()}, "one number a sample"),
        ({"method": pruned((Stage(1, step=2),), ranking=lambda judged: [0])}, "order all 11"),
    ],
)
def test_what_does_not_fit_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        run(**settings)


@pytest.mark.parametrize(
    ("sources", "wanted"), [(("guided",), 8), (("guided", "conditional"), 16), (("conditional", "state", "guided"), 24)]
)
def test_a_judge_of_latents_is_handed_its_sources_and_nothing_is_decoded(sources, wanted):
    judge = LatentReader(sources)
    result = run(pipeline=showing(), preview=judge, branches=2)
    assert {shape[1] for shape in judge.shapes} == {wanted}
    looked = sum(len(look.index) for found in result.found for look in found.looks)
    finished = sum(len(found.finish.index) for found in result.found)
    assert (result.cost.previews, result.cost.decodes) == (looked, finished)
    assert result.cost == result.planned


def test_the_branches_of_a_look_are_what_the_network_predicted_there():
    pipeline, seen = showing(), {}
    judge = Scorer(lambda row, sigma: float(row.mean()))
    for branch in ("guided", "conditional"):
        method = pruned((Stage(1.0, step=3, branch=branch),))
        seen[branch] = run(method, pipeline=pipeline, preview=judge, branches=2, keep_pictures=True).found[2].looks[0]
    x, grid = start(pipeline, PROMPTS, count=N, seed=0).latents[-N:], pipeline.grid(T)
    condition, clean = pipeline.encode([PROMPTS[2]] * N), {}
    for step in range(4):
        shown = pipeline.predict_branches(x, grid.model_time[step].repeat(N), condition)
        clean = {name: x - grid.sigma[step] * getattr(shown, name) for name in ("guided", "conditional")}
        x = x + (grid.sigma[step + 1] - grid.sigma[step]) * shown.guided
    for branch, look in seen.items():
        assert look.scores == pytest.approx(clean[branch].mean(dim=1).tolist(), abs=1e-5), branch
    assert seen["guided"].scores != seen["conditional"].scores


def test_pictures_of_a_judge_of_latents_are_of_its_first_source():
    first, alone = (
        run(pipeline=showing(), preview=LatentReader(sources), branches=2, keep_pictures=True).found[0].looks[0]
        for sources in (("conditional", "state"), ("conditional",))
    )
    assert first.pictures is not None
    assert alone.pictures is not None
    assert torch.equal(first.pictures, alone.pictures)


def test_a_conditional_branch_that_is_not_shown_is_an_error():
    with pytest.raises(ValueError, match="no predict_branches"):
        run(pruned((Stage(0.5, step=2, branch="conditional"),)))


def test_a_stage_of_another_branch_than_the_judge_reads_is_refused():
    with pytest.raises(ValueError, match="asks for the conditional branch, but latent-reader reads guided"):
        run(pruned((Stage(0.5, step=2, branch="conditional"),)), preview=LatentReader(("guided",)))
