"""The trainer on a toy with a known optimum: it learns, its first update is exactly on-policy, its guards act."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from difalign.core.types import Metadata, RewardOutput, Trajectories
from difalign.rollout.engine import rollout
from difalign.train.policy_gradient import PolicyGradient
from difalign.train.runtime import Runtime
from tests.sections import lay_over
from tests.toys import PerceptronPolicy
from tests.train.launched import launch
from tests.train.toy_run import (
    B2_SECTIONS,
    DIMENSIONS,
    Constant,
    Quadratic,
    TrainableToy,
    quiet,
    toy_config,
    toy_trainer,
    weights,
)

PLANS = {
    "plain": {"kind": "plain"},
    "window": {"kind": "window", "size": 2, "low": 0, "high": 4},
    "branch": {"kind": "branch", "mode": "early_k", "k": 3, "children": 6},
    "split": {"kind": "split", "at": 2, "children": 4},
    "cascade": {"kind": "cascade", "at": [0, 2], "children": 2, "last_step_noise": False},
}
ROOTS = {"plain": 12, "window": 12, "branch": 2, "split": 4, "cascade": 4}  # start noises a prompt


@pytest.mark.parametrize("kind", PLANS)
def test_every_plan_learns_through_the_trainer(kind) -> None:
    config = toy_config(sampling={"plan": PLANS[kind], "samples_per_prompt": ROOTS[kind]})
    trainer, _ = toy_trainer(config)
    rewards = [trainer.run(index, quiet)[0]["reward"] for index in range(30)]
    assert sum(rewards[:2]) / 2 < -0.8  # the exact flow: variance .49 + .64 of the offset, less what the grid loses
    assert sum(rewards[-3:]) / 3 > -0.35


def test_first_update_is_exactly_on_policy() -> None:
    config = toy_config(objective={"kl": {"kind": "gaussian", "beta": 0.0}})
    trainer, pipeline = toy_trainer(config)
    before = weights(pipeline)
    row = trainer.run(0, quiet)[0]
    assert row["ratio_max_deviation"] == 0.0
    assert row["ratio_mean"] == 1.0
    assert row["clip_fraction"] == 0.0
    assert row["loss"] == pytest.approx(0.0, abs=1e-6)  # minus the mean of advantages that are zero-mean in a group
    assert row["kl"] == 0.0
    assert not torch.equal(before, weights(pipeline))
    assert trainer.run(1, quiet)[0]["kl"] > 0.0


def test_gradient_of_the_first_update_is_that_of_reinforce() -> None:
    """At ratio 1 the clipped surrogate's gradient is -A grad log p, whatever the clip range."""
    norms = []
    for clip_range in (1e-6, 0.5):
        trainer, _ = toy_trainer(toy_config(objective={"clip_range": clip_range}))
        norms.append(trainer.run(0, quiet)[0]["grad_norm"])
    assert norms[0] == pytest.approx(norms[1], rel=1e-6)
    assert norms[0] > 0


def test_later_updates_of_a_rollout_are_off_policy() -> None:
    config = toy_config(training={"updates_per_rollout": 2, "rollouts": 4})
    rows = toy_trainer(config)[0].run(0, quiet)
    assert [row["update"] for row in rows] == [0, 1]
    assert rows[0]["ratio_max_deviation"] == 0.0
    assert rows[1]["ratio_max_deviation"] > 0.0


def test_inner_epochs_revisit_the_same_samples() -> None:
    trainer, _ = toy_trainer(toy_config(training={"inner_epochs": 3}))
    rows = trainer.run(0, quiet)
    assert len(rows) == 3
    assert len({row["reward"] for row in rows}) == 1
    assert rows[2]["ratio_max_deviation"] > rows[1]["ratio_max_deviation"] > rows[0]["ratio_max_deviation"] == 0.0


@pytest.mark.parametrize("micro_batch", [7, 1000])
def test_micro_batches_do_not_change_the_update(micro_batch) -> None:
    reference, pipeline = toy_trainer(toy_config())
    other, split = toy_trainer(
        toy_config(training={"micro_batch": micro_batch}, sampling={"micro_batch": micro_batch, "steps": 6})
    )
    for index in range(2):
        reference.run(index, quiet)
        other.run(index, quiet)
    torch.testing.assert_close(weights(split), weights(pipeline), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("offload", "place"), [(False, None), (True, "cpu")])
def test_recorded_steps_lie_where_the_run_says(offload, place, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def watched(*arguments: Any, **options: Any) -> Trajectories:
        asked.append(options["storage_device"])
        return rollout(*arguments, **options)

    monkeypatch.setattr("difalign.train.collector.rollout", watched)
    toy_trainer(toy_config(sampling={"offload": offload}))[0].run(0, quiet)
    assert asked == [place]


def test_forwards_and_rewards_are_counted() -> None:
    config = toy_config()
    trainer, pipeline = toy_trainer(config)
    row = trainer.run(0, quiet)[0]
    assert row["denoiser_forwards"] == trainer.forwards == 4 * 12 * 6
    assert row["reward_calls"] == trainer.reward_calls == 4 * 12
    assert sum(pipeline.batches) == 4 * 12 * 6 + 4 * 12 * 5  # sampling, and five recorded steps once in training


def test_equal_rewards_change_nothing() -> None:
    trainer, pipeline = toy_trainer(toy_config(), reward=Constant())
    before = weights(pipeline)
    row = trainer.run(0, quiet)[0]
    assert row["zero_variance_groups"] == 1.0
    assert row["rows"] == 0
    assert torch.equal(before, weights(pipeline))


def test_noise_aware_weights_change_the_update_and_have_mean_one() -> None:
    plain, first = toy_trainer(toy_config())
    weighted, second = toy_trainer(toy_config(objective={"weight": "noise_aware"}))
    plain.run(0, quiet)
    weighted.run(0, quiet)
    assert not torch.allclose(weights(first), weights(second))
    batch = weighted._collector.collect(1, quiet)[0]
    table = weighted._loss.step_weights(batch)
    assert float(table[:5].mean()) == pytest.approx(1.0, abs=1e-6)
    assert float(table[5]) == 0.0  # the last step is not trained


def test_kl_term_pulls_back_to_the_reference() -> None:
    distances = []
    for beta in (0.0, 30.0):
        config = toy_config(objective={"kl": {"kind": "gaussian", "beta": beta}})
        trainer, _ = toy_trainer(config)
        distances.append([trainer.run(index, quiet)[0]["kl"] for index in range(12)][-1])
    assert distances[1] < 0.5 * distances[0]


class _Stray(PerceptronPolicy):
    """Disagrees with itself between sampling and training."""

    astray = 0.01

    def forward(self, x: Tensor, t: Tensor, offset: Tensor) -> Tensor:
        return super().forward(x, t, offset) + (self.astray if torch.is_grad_enabled() else 0.0)


def test_guard_ratio_of_the_first_update() -> None:
    trainer, _ = toy_trainer(toy_config(), network=_Stray(DIMENSIONS))
    with pytest.raises(RuntimeError, match=r"first update deviates from 1 by .* same micro_batch"):
        trainer.run(0, quiet)


def test_guard_leaves_rounding_alone_that_is_far_within_the_clip_range() -> None:
    """Ratios off by a few millionths: nothing to a clip of 1e-3, much to one of 1e-5."""
    network = _Stray(DIMENSIONS)
    network.astray = 5e-6
    trainer, _ = toy_trainer(toy_config(objective={"clip_range": 1e-3}), network=network)
    assert 1e-6 < trainer.run(0, quiet)[0]["ratio_max_deviation"] < 2e-5
    trainer, _ = toy_trainer(toy_config(objective={"clip_range": 1e-5}), network=network)
    with pytest.raises(RuntimeError, match="above 1e-06"):
        trainer.run(0, quiet)
    network.astray = 1e-3
    trainer, _ = toy_trainer(toy_config(objective={"clip_range": 0.9}), network=network)
    with pytest.raises(RuntimeError, match=r"above 0\.0001"):
        trainer.run(0, quiet)


@dataclass(frozen=True)
class _Bad(Quadratic):
    def score(
        self, media: Tensor, prompts: Sequence[str], *, metadata: Metadata | None = None, sigma: float | None = None
    ) -> RewardOutput:
        return RewardOutput(torch.tensor([float("nan")] + [0.0] * (len(prompts) - 1)))


def test_guard_reward_that_is_no_number() -> None:
    trainer, _ = toy_trainer(toy_config(), reward=_Bad())
    with pytest.raises(ValueError, match=r"reward quadratic gave nan for '0\.\d\d'"):
        trainer.run(0, quiet)


WORKER = """
import json, sys, torch
from difalign.train.runtime import Runtime
from tests.train.toy_run import quiet, toy_config, toy_trainer, weights
torch.set_num_threads(1)
runtime, ended = Runtime(), {}
for name, sections in json.loads(sys.argv[2]).items():
    trainer, pipeline = toy_trainer(toy_config(**sections), runtime=runtime)
    rows = [row for index in range(3) for row in trainer.run(index, quiet)]
    ended[name] = {"weights": weights(pipeline), "reward": rows[-1]["reward"], "kept": rows[-1]["rows"]}
    ended[name] |= {"updates": trainer.updates, "history": list(trainer.state().prompt_rewards)}
if runtime.is_main:
    torch.save(ended, sys.argv[1])
runtime.close()
"""


def _advantage(**options: object) -> dict[str, object]:
    return {"sampling": {"prompts_per_update": 5}, "objective": {"advantage": options}}


BRANCHES = {"kind": "branch", "mode": "sampled_k", "k": 2}
COMPARED = {
    "group": _advantage(std="group"),
    "global std": _advantage(std="global"),
    "prompt history": _advantage(statistics="prompt_history", history={"buffer_size": 15, "min_count": 13}),
    "TempFlow-GRPO": {
        "sampling": {"prompts_per_update": 5, "samples_per_prompt": 3, "plan": BRANCHES},
        "objective": {
            "advantage": {"group_by": "seed"},
            "weight": "noise_aware",
            "kl": {"kind": "gaussian", "beta": 0.5},
        },
    },
    "B2-DiffuRL": B2_SECTIONS,
    "B2-DiffuRL with pairs": lay_over(B2_SECTIONS, {"objective": {"surrogate": "pair"}}),
}


@pytest.mark.multiproc
def test_two_and_three_processes_equal_one(tmp_path: Path) -> None:
    """Five prompts do not divide by two or three; every group stays whole and weighs the same."""
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    results = []
    for world in (1, 2, 3):
        file = tmp_path / f"{world}.pt"
        done = launch(world, [str(script), str(file), json.dumps(COMPARED)])
        assert done.returncode == 0, done.stderr[-3000:]
        results.append(torch.load(file, weights_only=True))
    stages = {"prompt history": 1, "B2-DiffuRL": 3, "B2-DiffuRL with pairs": 3}
    for name, one in results[0].items():
        for other in (result[name] for result in results[1:]):
            torch.testing.assert_close(other["weights"], one["weights"], rtol=1e-5, atol=1e-6, msg=name)
            assert other["reward"] == pytest.approx(one["reward"], abs=1e-6), name
            assert other["kept"] == one["kept"], name
            assert other["updates"] == one["updates"], name
            for mine, theirs in zip(other["history"], one["history"], strict=True):
                assert list(mine) == list(theirs), name
                for prompt, rewards in theirs.items():
                    assert mine[prompt] == pytest.approx(rewards, abs=1e-5), name
        assert len(one["history"]) == stages.get(name, 0), name


def test_a_second_run_in_one_interpreter_may_have_another_precision() -> None:
    first = Runtime(mixed_precision="no")
    first.close()
    second = Runtime(mixed_precision="bf16")
    with second.autocast():
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    second.close()
    assert product.dtype == torch.bfloat16


def test_without_informative_rows_the_loss_is_the_divergence_alone() -> None:
    """Equal rewards give no advantage; kept in, such rows are still pulled back to the reference."""
    config = toy_config(
        objective={"kl": {"kind": "gaussian", "beta": 2.0}, "filter_zero_variance": False, "clip_range": 0.5}
    )
    trainer, _ = toy_trainer(config)
    for index in range(3):
        trainer.run(index, quiet)
    trainer._collector.reward = Constant()
    row = trainer.run(3, quiet)[0]
    assert row["rows"] == 4 * 12 * 5
    assert row["kl"] > 0
    assert row["policy_loss"] == 0.0
    assert row["loss"] == pytest.approx(2.0 * row["kl"], rel=1e-5)
    assert row["grad_norm"] > 0
    later = [trainer.run(index, quiet)[0]["kl"] for index in range(4, 20)]
    assert later[-1] < 0.5 * row["kl"]


@dataclass
class _Overflowing:
    """An optimiser whose steps a loss scaler skips, until told otherwise."""

    inner: torch.optim.Optimizer
    step_was_skipped: bool = True

    def step(self) -> None:
        if not self.step_was_skipped:
            self.inner.step()

    def zero_grad(self, *, set_to_none: bool) -> None:
        self.inner.zero_grad(set_to_none=set_to_none)


def overflowing(monkeypatch: pytest.MonkeyPatch) -> tuple[PolicyGradient, TrainableToy, _Overflowing]:
    config = toy_config(training={"ema": {"enabled": True, "every": 1}, "mixed_precision": "fp16"})
    trainer, pipeline = toy_trainer(config)
    optimizer = _Overflowing(trainer._optimisation._optimizer)
    trainer._optimisation._optimizer = optimizer
    monkeypatch.setattr(trainer._runtime, "clip_gradients", lambda parameters, max_norm: float("inf"))
    return trainer, pipeline, optimizer


def test_a_step_that_the_loss_scaler_skips_is_neither_an_error_nor_an_average(monkeypatch) -> None:
    trainer, pipeline, optimizer = overflowing(monkeypatch)
    before = weights(pipeline)
    trainer.run(0, quiet)
    assert trainer.average is not None
    assert not trainer.average.taken
    monkeypatch.undo()
    optimizer.step_was_skipped = False
    trainer.run(1, quiet)  # and now the weights are seen to move
    assert trainer.average.taken
    assert not torch.equal(before, weights(pipeline))


def test_guard_steps_that_are_skipped_for_ever(monkeypatch) -> None:
    trainer, pipeline, _ = overflowing(monkeypatch)
    before = weights(pipeline)
    for index in range(19):
        trainer.run(index, quiet)
    assert not trainer.alarms.given  # it is how the scale is found
    with pytest.raises(FloatingPointError, match="overflowed 20 times in a row at rollout 19"):
        trainer.run(19, quiet)
    assert torch.equal(before, weights(pipeline))
