"""Estimates on the way: those of the process at that step, of the rollout's own samples, row by row reproducible."""

from __future__ import annotations

import pytest
import torch

from difalign.pipelines.sd3 import SD3Pipeline
from difalign.process.flow import FlowProcess
from difalign.rollout.engine import rollout
from difalign.rollout.estimates import find_steps, walk_estimates
from difalign.rollout.plans import deterministic
from tests.tiny_models import PROMPTS, tiny_sd3
from tests.toys import elementwise_pipeline

SEEDS = (5, 6, 7, 8)
STEPS = 4


@pytest.fixture(scope="module")
def sd3() -> SD3Pipeline:
    return SD3Pipeline(tiny_sd3(), process=FlowProcess(), guidance_scale=3.0, max_sequence_length=0)


def test_estimates_and_samples_of_sd3_are_those_of_its_process(sd3: SD3Pipeline):
    condition, grid = sd3.encode(PROMPTS[:2]), sd3.grid(STEPS)
    prompt_index, sigmas = torch.tensor([0, 1, 1, 0]), [float(grid.sigma[1]), float(grid.sigma[3])]
    found = walk_estimates(
        sd3, condition=condition, prompt_index=prompt_index, seeds=SEEDS, num_steps=STEPS, sigmas=sigmas
    )
    x = sd3.initial_latents([torch.Generator().manual_seed(seed) for seed in SEEDS])
    estimates = []
    with torch.no_grad():
        for i in range(STEPS):
            v = sd3.predict(x, grid.model_time[i].expand(4), condition.rows(prompt_index))
            estimates.append(sd3.process.clean_estimate(x, v, grid, i))
            x = sd3.process.transition(x, v, grid, i, 0.0).mean
    assert found.sigmas == tuple(sigmas)
    assert torch.equal(found.clean["guided"], torch.stack([estimates[1], estimates[3]]))
    assert torch.equal(found.final, x)
    assert torch.allclose(found.clean["guided"][1], found.final, atol=1e-5)  # the last step ends at its estimate
    assert not torch.allclose(found.clean["guided"][0], found.final, atol=1e-2)


def test_each_source_shows_its_own(sd3: SD3Pipeline):
    """The conditional branch is what the network predicts at guidance 1; the walk goes on by the guided prediction."""
    condition, grid = sd3.encode(PROMPTS[:1]), sd3.grid(STEPS)
    common = {"condition": condition, "prompt_index": torch.zeros(2, dtype=torch.int64), "seeds": SEEDS[:2]}
    levels = [float(grid.sigma[0]), float(grid.sigma[2])]
    found = walk_estimates(
        sd3, **common, num_steps=STEPS, sigmas=levels, sources=("state", "conditional", "guided"), micro_batch=1
    )
    plain = walk_estimates(sd3, **common, num_steps=STEPS, sigmas=levels, micro_batch=1)
    assert list(found.clean) == ["state", "conditional", "guided"]
    assert torch.equal(found.final, plain.final)
    assert torch.equal(found.clean["guided"], plain.clean["guided"])
    start = sd3.initial_latents([torch.Generator().manual_seed(seed) for seed in SEEDS[:2]])
    assert torch.equal(found.clean["state"][0], start)
    unguided = sd3.with_guidance(1.0)
    for level, step in enumerate((0, 2)):
        x = found.clean["state"][level]
        with torch.no_grad():
            v = unguided.predict(x, grid.model_time[step].expand(2), condition.rows(torch.zeros(2, dtype=torch.int64)))
        shown = sd3.process.clean_estimate(x, v, grid, step)
        assert torch.allclose(found.clean["conditional"][level], shown, atol=1e-5)
    assert not torch.allclose(found.clean["conditional"], found.clean["guided"], atol=1e-2)


def test_a_pipeline_that_shows_no_branch_is_refused_if_it_is_asked_for():
    pipeline = elementwise_pipeline()
    common = {"prompt_index": torch.zeros(1, dtype=torch.int64), "seeds": (1,), "num_steps": 2, "sigmas": [1.0]}
    found = walk_estimates(pipeline, condition=pipeline.encode(["0"]), **common, sources=("state", "guided"))
    assert set(found.clean) == {"state", "guided"}
    with pytest.raises(ValueError, match="has no predict_branches"):
        walk_estimates(pipeline, condition=pipeline.encode(["0"]), **common, sources=("conditional",))
    for sources in ((), ("guided", "guided")):
        with pytest.raises(ValueError, match="at least one, and each once"):
            walk_estimates(pipeline, condition=pipeline.encode(["0"]), **common, sources=sources)


def test_samples_are_the_rollouts_and_rows_depend_on_their_seed_only():
    pipeline = elementwise_pipeline()
    condition, prompt_index = pipeline.encode(["0.5", "-1"]), torch.tensor([0, 1, 1, 0])
    levels = pipeline.grid(STEPS).sigma[:3].tolist()

    def walk(rows: slice, micro_batch: int):
        return walk_estimates(
            pipeline,
            condition=condition,
            prompt_index=prompt_index[rows],
            seeds=SEEDS[rows],
            num_steps=STEPS,
            sigmas=levels[::-1],
            micro_batch=micro_batch,
        )

    whole, part = walk(slice(0, 4), 3), walk(slice(2, 4), 16)
    assert torch.equal(whole.clean["guided"][:, 2:], part.clean["guided"])
    assert whole.sigmas == tuple(levels)
    assert (whole.forwards, part.forwards) == (16, 8)
    sampled = rollout(
        pipeline, [deterministic(STEPS)], condition=condition, prompt_index=prompt_index, root_seeds=SEEDS
    )
    assert torch.equal(whole.final, sampled.final)


def test_progress_counts_rows():
    pipeline, seen = elementwise_pipeline(), []
    walk_estimates(
        pipeline,
        condition=pipeline.encode(["0"]),
        prompt_index=torch.zeros(3, dtype=torch.int64),
        seeds=SEEDS[:3],
        num_steps=2,
        sigmas=[1.0],
        micro_batch=2,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(2, 6), (4, 6), (5, 6), (6, 6)]


def test_levels_are_found_by_sigma():
    grid = elementwise_pipeline().grid(STEPS)
    assert find_steps(grid, [round(float(grid.sigma[2]), 4), 1.0]) == (0, 2)
    with pytest.raises(ValueError, match=r"no step of this grid starts there; its steps start at 1\.0000"):
        find_steps(grid, [0.123])
    for levels in ([], [1.0, 1.0]):
        with pytest.raises(ValueError, match="each once"):
            find_steps(grid, levels)


@pytest.mark.parametrize(("seeds", "micro_batch"), [((1, 2), 4), ((), 4), ((1,), 0)])
def test_walks_that_cannot_be_made(seeds: tuple[int, ...], micro_batch: int):
    pipeline = elementwise_pipeline()
    with pytest.raises(ValueError, match=r"one of each a walk|at least 1"):
        walk_estimates(
            pipeline,
            condition=pipeline.encode(["0"]),
            prompt_index=torch.zeros(1 if seeds else 0, dtype=torch.int64),
            seeds=seeds,
            num_steps=2,
            sigmas=[1.0],
            micro_batch=micro_batch,
        )
