"""The public function on the shipped pipeline: winners are samples, at the cost that was asked for."""

from __future__ import annotations

import pytest
import torch

from difalign import api
from difalign.core.protocols import Pipeline
from difalign.search.budget import Budget
from difalign.search.methods import pruned
from difalign.search.schedule import Stage

PROMPTS = ["two red circles", "a blue square"]
STEPS = 4
METHOD = pruned((Stage(0.5, sigma=0.7),))


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return api.load_pipeline("tiny-sd3")


def test_the_winner_is_the_best_of_the_samples(pipeline):
    result = api.search(pipeline, PROMPTS, budget=3, seed=7, steps=STEPS)
    drawn = api.sample(pipeline, PROMPTS, seed=7, samples_per_prompt=3, steps=STEPS, rewards="verifier")
    assert drawn.scores is not None
    for found, scores, pixels in zip(result.found, drawn.scores.split(3), drawn.pixels.split(3), strict=True):
        assert found.winner is not None
        assert found.score == pytest.approx(float(scores.max()), abs=1e-4)
        assert found.picture is not None
        drawn_again = (pixels[found.winner] * 255).round()
        assert (found.picture - drawn_again).abs().max() <= 1  # kernels round by the size of a batch


def test_a_budget_in_evaluations_counts_both_branches_and_is_kept(pipeline):
    rows = []
    hook = pipeline.network.register_forward_pre_hook(
        lambda module, arguments, named: rows.append(next(iter((*arguments, *named.values()))).shape[0]),
        with_kwargs=True,
    )
    result = api.search(pipeline, PROMPTS, budget=Budget(nfe=40), method=METHOD, steps=STEPS, guidance=3.0)
    hook.remove()
    assert result.cost == result.planned
    assert result.cost.nfe == sum(rows) - 2  # one row was predicted to see what a row costs
    assert result.cost.nfe <= 80
    assert all(found.looks for found in result.found)
    with pytest.raises(ValueError, match="give at least 8"):
        api.search(pipeline, PROMPTS, budget=Budget(nfe=7), method=METHOD, steps=STEPS, guidance=3.0)


def test_invariant_23_scoring_the_winning_picture_again_gives_its_score(pipeline):
    (found,) = api.search(pipeline, PROMPTS[0], budget=4, method=METHOD, steps=STEPS, keep_pictures=True).found
    assert found.picture is not None
    again = api.score("verifier", found.picture[None].float() / 255, [found.prompt])
    assert float(again.scores) == pytest.approx(found.score, abs=0.02)
    assert found.finish.pictures is not None
    assert found.finish.pictures.dtype == torch.uint8


def test_no_prompts_are_refused(pipeline):
    with pytest.raises(ValueError, match="no prompts"):
        api.search(pipeline, [], budget=2)
