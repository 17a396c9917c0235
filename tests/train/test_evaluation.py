"""Held-out evaluation: the same samples for ever, whatever the batch, the order, the weights' history or the world."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from difalign.core.prompts import Prompt
from difalign.core.types import Metadata, RewardOutput
from difalign.report.records import spread_over_kinds
from difalign.train.evaluation import EvaluationPlan, EvaluationResult, evaluate, evaluation_seed
from difalign.train.runtime import Runtime
from tests.toys import ElementwisePolicy, ToyPipeline
from tests.train.together import ThreadRuntime, run_together

PROMPTS = tuple(Prompt(f"{0.1 * i:.1f}", kind) for i, kind in enumerate(("dark", "dark", "dark", "light", "light")))
PLAN = EvaluationPlan(steps=3, seeds_per_prompt=2, micro_batch=4)
LATENT = (3, 4, 4)


class Pictures(ToyPipeline):
    """Latents as pixels in [0, 1]."""

    def decode(self, latents: Tensor) -> Tensor:
        return torch.sigmoid(latents)


@dataclass(frozen=True)
class Mean:
    """The mean pixel plus the prompt's number, with the first as a component."""

    name: str = "mean"
    differentiable: bool = False

    def score(
        self, media: Tensor, prompts: Sequence[str], *, metadata: Metadata | None = None, sigma: float | None = None
    ) -> RewardOutput:
        mean = media.flatten(1).mean(dim=1)
        return RewardOutput(mean + torch.tensor([float(prompt) for prompt in prompts]), {"mean": mean})


def pipeline() -> Pictures:
    return Pictures(ElementwisePolicy(), latent=LATENT)


def run(
    prompts: Sequence[Prompt] = PROMPTS, plan: EvaluationPlan = PLAN, *, runtime: Runtime | None = None
) -> EvaluationResult:
    return evaluate(
        pipeline(), Mean(), prompts, plan, Runtime() if runtime is None else runtime, rollout_index=7, label="tuned"
    )


def scores(result: EvaluationResult) -> dict[tuple[str, int, str], float]:
    """(prompt, seed, name of the score) -> score."""
    return {
        (record.prompt, record.seed, name): score
        for record in result.evaluation.records
        for name, score in record.scores.items()
    }


def close(expected: dict[tuple[str, int, str], float]) -> object:
    """Equal up to the last bits: vectorised functions treat the tail of a batch by other instructions."""
    return pytest.approx(expected, abs=1e-6)


@torch.no_grad()
def by_hand(prompt: Prompt, seed: int) -> Tensor:
    """The pixels of one sample: its own noise, and Euler's steps down the exact velocity."""
    model = pipeline()
    grid = model.grid(PLAN.steps)
    x = torch.randn(LATENT, generator=torch.Generator().manual_seed(evaluation_seed(prompt.text, seed)))[None]
    for step in range(PLAN.steps):
        velocity = model.predict(x, grid.model_time[step : step + 1], model.encode([prompt.text]))
        x = x + velocity * (grid.sigma[step + 1] - grid.sigma[step])
    return torch.sigmoid(x)


def test_samples_are_the_ode_from_the_seed_of_the_prompt() -> None:
    result = run()
    for record in result.evaluation.records:
        pixels = by_hand(PROMPTS[record.prompt_index], record.seed)
        expected = Mean().score(pixels, [record.prompt])
        assert record.scores["total"] == pytest.approx(float(expected.scores), abs=1e-6)
        assert record.scores["mean"] == pytest.approx(float(expected.components["mean"]), abs=1e-6)


def test_records_stand_in_the_order_of_prompts_and_seeds() -> None:
    result = run()
    records = result.evaluation.records
    assert (result.evaluation.rollout, result.evaluation.label) == (7, "tuned")
    assert [record.key for record in records] == [(p, s) for p in range(5) for s in range(2)]
    assert [record.prompt for record in records] == [prompt.text for prompt in PROMPTS for _ in range(2)]
    assert [record.kind for record in records] == [prompt.kind for prompt in PROMPTS for _ in range(2)]
    assert all(set(record.scores) == {"total", "mean"} for record in records)
    assert len({record.scores["mean"] for record in records}) == 10  # ten different samples


def test_twice_is_the_same_to_the_last_bit() -> None:
    first, second = run(), run()
    assert first.evaluation == second.evaluation
    assert first.images is not None
    assert second.images is not None
    assert torch.equal(first.images, second.images)


@pytest.mark.parametrize("micro_batch", [1, 3, 100])
def test_micro_batches_change_nothing(micro_batch) -> None:
    result = run(plan=replace(PLAN, micro_batch=micro_batch))
    assert [record.key for record in result.evaluation.records] == [(p, s) for p in range(5) for s in range(2)]
    assert scores(result) == close(scores(run()))


def test_order_and_company_of_a_prompt_change_nothing() -> None:
    everything = scores(run())
    backwards = scores(run(PROMPTS[::-1]))
    few = scores(run(PROMPTS[1:3], replace(PLAN, seeds_per_prompt=1)))
    assert backwards == close(everything)
    assert few == close({key: everything[key] for key in few})


def test_seeds_depend_on_prompt_and_number_alone() -> None:
    seeds = {evaluation_seed(prompt.text, s) for prompt in PROMPTS for s in range(50)}
    assert len(seeds) == 5 * 50
    assert evaluation_seed("a red circle", 1) == evaluation_seed("a red circle", 1)


def test_global_random_state_is_neither_read_nor_moved() -> None:
    reference = run()
    torch.manual_seed(123)
    before = torch.random.get_rng_state()
    assert run().evaluation == reference.evaluation
    assert torch.equal(torch.random.get_rng_state(), before)


def test_forwards_are_rows_times_steps() -> None:
    result = run()
    model = pipeline()
    evaluate(model, Mean(), PROMPTS, PLAN, Runtime(), rollout_index=0, label="base")
    assert result.forwards == sum(model.batches) == 5 * 2 * 3
    assert max(model.batches) == PLAN.micro_batch


def test_no_graph_is_kept() -> None:
    result = run()
    assert result.images is not None
    assert not result.images.requires_grad


@pytest.mark.parametrize("limit", [1, 3, 36])
def test_pictures_shown_are_those_of_their_records_and_spread_over_kinds(limit) -> None:
    result = run(plan=replace(PLAN, shown=limit))
    assert result.shown == spread_over_kinds(result.evaluation.records, limit=limit)
    assert len(result.shown) == min(limit, 5)
    assert result.images is not None
    for image, index in zip(result.images, result.shown, strict=True):
        record = result.evaluation.records[index]
        torch.testing.assert_close(image[None], by_hand(PROMPTS[record.prompt_index], record.seed))


def test_progress_rises_to_the_whole() -> None:
    seen: list[tuple[int, int]] = []
    evaluate(
        pipeline(),
        Mean(),
        PROMPTS,
        PLAN,
        Runtime(),
        rollout_index=0,
        label="base",
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(4, 10), (8, 10), (10, 10)]


@pytest.mark.parametrize("world", [2, 3, 12])
def test_any_number_of_processes_gives_one_evaluation(world) -> None:
    """Ten samples do not divide by three, and of twelve processes two have nothing to do."""

    def process(runtime: ThreadRuntime) -> EvaluationResult:
        return evaluate(pipeline(), Mean(), PROMPTS, PLAN, runtime, rollout_index=7, label="tuned")

    alone, results = run(), run_together(world, process)
    assert all(result.evaluation == results[0].evaluation for result in results)
    assert [record.key for record in results[0].evaluation.records] == [(p, s) for p in range(5) for s in range(2)]
    assert scores(results[0]) == close(scores(alone))
    assert all(result.forwards == alone.forwards for result in results)
    assert all(result.images is None for result in results[1:])
    assert results[0].images is not None
    assert alone.images is not None
    torch.testing.assert_close(results[0].images, alone.images)


@dataclass(frozen=True)
class Broken(Mean):
    """Fails on one prompt."""

    def score(
        self, media: Tensor, prompts: Sequence[str], *, metadata: Metadata | None = None, sigma: float | None = None
    ) -> RewardOutput:
        return RewardOutput(torch.tensor([float("nan") if prompt == "0.3" else 0.0 for prompt in prompts]))


def test_score_that_is_no_number_names_its_prompt() -> None:
    with pytest.raises(ValueError, match=r"reward mean gave nan for '0\.3'"):
        evaluate(pipeline(), Broken(), PROMPTS, PLAN, Runtime(), rollout_index=0, label="base")
