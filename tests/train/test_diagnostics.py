"""What single steps say: it agrees with the closed form and with the run's own figures, and it changes nothing."""

from __future__ import annotations

import math
from statistics import fmean, pstdev
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from difalign.core.gaussian import broadcast_rows
from difalign.report.diagnostics import Diagnostics
from difalign.train.collector import Batch
from difalign.train.diagnostics import StepWatch, recorded_steps, small_pictures
from difalign.train.partition import Part
from difalign.train.policy_gradient import PolicyGradient
from tests.toys import flow_velocity
from tests.train import toy_run
from tests.train.toy_run import B2_SECTIONS, TrainableToy, quiet, toy_config, toy_trainer, weights

BRANCH = {"sampling": {"plan": {"kind": "branch", "children": 4}, "samples_per_prompt": 2}}


def looked_at(monkeypatch: pytest.MonkeyPatch, **sections: Any) -> tuple[PolicyGradient, TrainableToy, list[Any]]:
    """A trainer that keeps what it saw in the list."""
    seen: list[Diagnostics] = []
    monkeypatch.setattr(
        toy_run,
        "PolicyGradient",
        lambda *arguments, **options: PolicyGradient(
            *arguments, **options, diagnostics=lambda diagnostics, pictures: seen.append(diagnostics)
        ),
    )
    trainer, pipeline = toy_trainer(toy_config(**{"diagnostics": {"every": 1}, **sections}))
    return trainer, pipeline, seen


PAIRS = {
    **BRANCH,
    "objective": {"surrogate": "pair", "filter_zero_variance": False, "advantage": {"group_by": "seed"}},
}
RUNS = {
    "several updates": {**BRANCH, "training": {"updates_per_rollout": 2, "inner_epochs": 2}},
    "parts and selection": B2_SECTIONS,
    "pairs": PAIRS,
}


@pytest.mark.parametrize("run", RUNS)
def test_looking_changes_nothing(monkeypatch: pytest.MonkeyPatch, run: str) -> None:
    sections: dict[str, Any] = RUNS[run]
    blind, untouched, nothing = looked_at(monkeypatch, **sections, diagnostics={"every": 0})
    watched, pipeline, seen = looked_at(monkeypatch, **sections)
    for index in range(3):
        assert blind.run(index, quiet) == watched.run(index, quiet)
    assert torch.equal(weights(untouched), weights(pipeline))
    moments = [trainer.state().optimizer for trainer in (blind, watched)]
    assert all(torch.equal(value, moments[1][name]) for name, value in moments[0].items())
    assert all(parameter.grad is None for parameter in pipeline.network.parameters())
    assert (len(nothing), len(seen)) == (0, 3)
    assert all(step.gradient_norm > 0.0 for item in seen for step in item.steps)


def test_only_every_so_many_rollouts_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, _, seen = looked_at(monkeypatch, diagnostics={"every": 2})
    for index in range(5):
        trainer.run(index, quiet)
    assert [item.rollout for item in seen] == [0, 2, 4]


@pytest.mark.parametrize("micro_batch", [5, 64])
def test_gradient_of_a_single_step_is_that_of_the_update(monkeypatch: pytest.MonkeyPatch, micro_batch: int) -> None:
    """With one trained step there is nothing else in the gradient; a pull to the reference is left out."""
    plan = {"kind": "window", "size": 1, "low": 2, "high": 3, "strategy": "fixed"}
    sections = {
        "sampling": {"plan": plan, "micro_batch": micro_batch},
        "objective": {"weight": "inverse_step_size"},
        "training": {"micro_batch": micro_batch, "max_grad_norm": 1e9},
    }
    trainer, pipeline, seen = looked_at(monkeypatch, **sections)
    row = trainer.run(0, quiet)[0]
    (step,) = seen[0].steps
    grid = pipeline.grid(6)
    assert step.step == 2
    assert step.weight == pytest.approx(float(1 / (grid.sigma[2] - grid.sigma[3])), rel=1e-5)
    assert step.weighted_gradient_norm == pytest.approx(row["grad_norm"], rel=1e-4)
    assert step.gradient_norm == pytest.approx(row["grad_norm"] / step.weight, rel=1e-4)
    assert step.reward_std == pytest.approx(row["group_std"], rel=1e-5)


class Offset(nn.Module):
    """The exact velocity plus a learnable constant, one number a latent element."""

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(dimensions))

    def forward(self, x: Tensor, t: Tensor, offset: Tensor) -> Tensor:
        return flow_velocity(x, broadcast_rows(t, x), broadcast_rows(offset, x), spread=0.7) + self.shift


def test_gradient_norms_follow_the_closed_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """|d log p / d v| = (dt / s)(1 + a^2 / 2) / sqrt(D) under Flow-GRPO's rule; the first factor is 1 at sigma = 1.

    TempFlow-GRPO (arXiv 2508.04324) derives its weights from this: times s, the excess of low-noise steps is gone.
    Gradients of independent noises are orthogonal in many dimensions, so that those of a step add up in square.
    """
    dimensions, noise_level = 4096, 0.7
    monkeypatch.setattr(toy_run, "PerceptronPolicy", lambda _: Offset(dimensions))
    monkeypatch.setattr(toy_run, "DIMENSIONS", dimensions)
    plan = {"kind": "plain", "last_step_noise": False}
    sampling = {"steps": 6, "plan": plan, "noise_level": noise_level, "prompts_per_update": 2, "samples_per_prompt": 4}
    trainer, pipeline, seen = looked_at(monkeypatch, sampling=sampling, objective={"weight": "noise_aware"})
    squares: list[float] = []
    begin = StepWatch.begin

    def noted(self: StepWatch, index: int, batches: Any, first: Part, **options: Any) -> None:
        squares.append(float(first.advantages.advantage.double().square().sum()) / first.total**2)
        begin(self, index, batches, first, **options)

    monkeypatch.setattr(StepWatch, "begin", noted)
    trainer.run(0, quiet)
    steps, sigma = seen[0].steps, pipeline.grid(6).sigma.tolist()
    assert [step.step for step in steps] == [0, 1, 2, 3, 4]
    for step in steps:
        assert step.gradient_norm is not None
        drift = 1.0 if step.step == 0 else 1.0 + noise_level**2 / 2
        dt = sigma[step.step] - sigma[step.step + 1]
        expected = dt * drift / step.std * math.sqrt(squares[0] / len(steps) / dimensions)
        assert step.gradient_norm == pytest.approx(expected, rel=0.05)
        assert step.weighted_gradient_norm == pytest.approx(step.weight * step.gradient_norm, rel=1e-12)
    assert sum(step.weight for step in steps) / len(steps) == pytest.approx(1.0)


def test_spread_of_rewards_is_that_of_explorations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a group and within a start noise, over all updates of the rollout."""
    trainer, _, seen = looked_at(monkeypatch, **BRANCH, training={"updates_per_rollout": 2})
    kept: list[Batch] = []
    begin = StepWatch.begin

    def noted(self: StepWatch, index: int, batches: Any, *arguments: Any, **options: Any) -> None:
        kept.extend(batches)
        begin(self, index, batches, *arguments, **options)

    monkeypatch.setattr(StepWatch, "begin", noted)
    trainer.run(0, quiet)
    for step in seen[0].steps:
        of_prompt: dict[Any, list[float]] = {}
        of_noise: dict[Any, list[float]] = {}
        for update, batch in enumerate(kept):
            walks = batch.scored.trajectories
            for edge in (walks.step == step.step).nonzero().flatten().tolist():
                root, reward = int(walks.root[edge]), float(batch.scored.edge_reward[edge])
                of_prompt.setdefault((update, int(batch.prompt_index[root])), []).append(reward)
                of_noise.setdefault((update, root), []).append(reward)
        assert (len(of_prompt), len(of_noise)) == (2 * 4, 2 * 4 * 2)
        assert step.reward_std == pytest.approx(fmean(map(pstdev, of_prompt.values())), rel=1e-6)
        assert step.seed_reward_std == pytest.approx(fmean(map(pstdev, of_noise.values())), rel=1e-6)
        assert step.edges == sum(map(len, of_noise.values()))


def test_one_sample_a_start_noise_has_no_spread_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, _, seen = looked_at(monkeypatch)
    trainer.run(0, quiet)
    assert {step.seed_reward_std for step in seen[0].steps} == {None}
    assert len({round(step.reward_std or 0.0, 6) for step in seen[0].steps}) == 1  # one reward for the whole walk


def test_ratios_are_those_of_the_updates_after_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    sections = {"objective": {"clip_range": 1e-3}, "training": {"inner_epochs": 3, "micro_batch": 17}}
    trainer, _, seen = looked_at(monkeypatch, **sections)
    rows = trainer.run(0, quiet)[1:]
    steps = seen[0].steps
    for name in ("ratio_mean", "clip_fraction"):  # as many edges at every step, and in both updates
        mean = sum(getattr(step, name) for step in steps) / len(steps)
        assert mean == pytest.approx(sum(row[name] for row in rows) / len(rows), rel=1e-5)
    assert all(0.0 < step.ratio_std < 0.1 for step in steps)
    assert sum(step.clip_fraction for step in steps) > 0.0


def test_a_single_update_has_no_ratios(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, _, seen = looked_at(monkeypatch)
    trainer.run(0, quiet)
    assert {(step.clip_fraction, step.ratio_mean, step.ratio_std) for step in seen[0].steps} == {(None, None, None)}


def test_equal_rewards_have_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toy_run, "Quadratic", toy_run.Constant)
    trainer, _, seen = looked_at(monkeypatch)
    trainer.run(0, quiet)
    assert {(step.gradient_norm, step.reward_std) for step in seen[0].steps} == {(0.0, 0.0)}


def test_pictures_are_small_and_of_the_middle_frame() -> None:
    media = torch.rand(2, 3, 192, 96)
    assert small_pictures(media).shape == (2, 3, 96, 48)
    torch.testing.assert_close(small_pictures(media)[:, :, 0, 0], media[:, :, :2, :2].mean(dim=(2, 3)))
    video = torch.rand(2, 5, 3, 8, 8)
    assert torch.equal(small_pictures(video), video[:, 2])
    assert len(small_pictures(torch.rand(2, 4))) == 0


def test_recorded_steps_are_those_of_all_plans() -> None:
    from difalign.rollout.plans import branch

    assert recorded_steps(branch(6, 0.7, children=2, at=(4, 1))) == (1, 4)
