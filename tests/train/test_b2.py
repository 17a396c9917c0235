"""B2-DiffuRL in the trainer: intervals, selection, parts of a stage, pairs, and that it learns what is best."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from difalign.core.config import RunConfig
from difalign.core.prompts import Prompt
from difalign.objective.advantages import Advantages
from difalign.rollout.grouping import first_leaves
from difalign.train.collector import Batch
from difalign.train.partition import Part, partition
from difalign.train.policy_gradient import PolicyGradient
from tests.sections import lay_over
from tests.train.ddim_toy import STEPS, ddpo_trainer, outlook
from tests.train.toy_run import B2_SECTIONS, PROMPTS, Constant, Quadratic, quiet, toy_config, toy_trainer, weights


def b2_config(**sections: Any) -> RunConfig:
    merged: dict[str, Any] = dict(B2_SECTIONS)
    for name, options in sections.items():
        merged = lay_over(merged, {name: options})
    return toy_config(**merged)


@dataclass(frozen=True)
class Stage:
    """One rollout before its updates."""

    batch: Batch
    advantages: Advantages
    parts: list[Part]


def stage(config: RunConfig, index: int = 0, *, reward: Quadratic | None = None) -> tuple[PolicyGradient, Stage]:
    trainer, _ = toy_trainer(config, reward=reward)
    batches = trainer._collector.collect(index, quiet)
    advantages = trainer._comparison.advantages(batches)
    parts = partition(batches, advantages, config, trainer._runtime, update=0)
    return trainer, Stage(batches[0], advantages[0], parts)


def trajectories(of: Stage, rows: Tensor) -> Counter[int]:
    """How many of ``rows`` belong to each sample."""
    return Counter(first_leaves(of.batch.scored.trajectories)[rows].tolist())


# --- what is trained when ------------------------------------------------------------------------------------------


def test_only_the_interval_is_recorded_and_it_grows_backwards() -> None:
    config = b2_config()
    for index, start in enumerate((2, 1, 0, 0)):
        _, found = stage(config, index)
        walks = found.batch.scored.trajectories
        assert torch.unique(walks.step).tolist() == list(range(start, 5))  # the last step is deterministic
        assert config.interval(index) == range(start, 5)


def test_branches_share_their_prefix_and_part_at_the_fork() -> None:
    _, found = stage(b2_config())
    walks = found.batch.scored.trajectories
    x = walks.x[walks.step == 2].unflatten(0, (8, 5))
    x_next = walks.x_next[walks.step == 2].unflatten(0, (8, 5))
    for root in range(8):
        assert all(torch.equal(x[root, 0], x[root, k]) for k in range(5))
        assert all(not torch.equal(x_next[root, i], x_next[root, j]) for i in range(5) for j in range(i))


def test_steps_before_the_interval_get_no_gradient() -> None:
    """A bias a step: those of the shared prefix stay exactly where they were."""
    sections = lay_over(B2_SECTIONS, {"curriculum": {"first": 4, "last": 10, "stages": 7}})
    trainer, pipeline = ddpo_trainer(_ddim(sections, 3e-2))
    trainer.run(0, quiet)
    bias = pipeline.network.bias.detach()
    assert bias[: STEPS - 4].tolist() == [0.0] * (STEPS - 4)
    assert bool((bias[STEPS - 4 :] != 0).all())


# --- selection -----------------------------------------------------------------------------------------------------


def test_a_start_noise_gives_at_most_its_best_and_its_worst() -> None:
    _, found = stage(b2_config())
    walks, kept = found.batch.scored.trajectories, found.advantages.extremes
    assert kept is not None
    total = found.batch.rewards["total"].view(8, 5)
    leaf = first_leaves(walks)
    assert 0 < len(kept.rows) < len(walks.step)
    for rows, expected in ((kept.positive, total.argmax(dim=1)), (kept.negative, total.argmin(dim=1))):
        for root in range(8):
            mine = leaf[rows[walks.root[rows] == root]] % 5
            assert set(mine.tolist()) <= {int(expected[root])}
            assert len(mine) in (0, 3)  # at every step of the interval, or at none
    assert bool((found.advantages.advantage[kept.positive] >= 0.5).all())
    assert bool((found.advantages.advantage[kept.negative] < -0.5).all())


def test_figures_say_how_many_are_kept() -> None:
    trainer, _ = toy_trainer(b2_config())
    rows = trainer.run(0, quiet)
    first = rows[0]
    assert first["kept"] == first["kept_positive"] + first["kept_negative"]
    assert sum(row["rows"] for row in rows) == 2 * 3 * first["kept"]  # two passes, three steps
    assert all(row["interval_start"] == 2 for row in rows)
    assert all(row["kept"] == first["kept"] for row in rows)


def test_a_stage_that_keeps_nothing_is_a_row_without_an_update() -> None:
    options = {**B2_SECTIONS["objective"]["advantage"], "selection": {"positive": 90.0, "negative": -90.0}}
    trainer, pipeline = toy_trainer(b2_config(objective={"advantage": options}))
    before = weights(pipeline)
    (row,) = trainer.run(0, quiet)
    assert (row["rows"], row["kept"], row["grad_norm"]) == (0, 0, 0)
    assert torch.equal(weights(pipeline), before)
    assert len(trainer.state().prompt_rewards) == 1  # the stage counts all the same


def test_equal_rewards_keep_nothing() -> None:
    trainer, pipeline = toy_trainer(b2_config(), reward=Constant())
    before = weights(pipeline)
    (row,) = trainer.run(0, quiet)
    assert row["rows"] == 0
    assert torch.equal(weights(pipeline), before)


# --- parts of a stage ----------------------------------------------------------------------------------------------


def test_updates_take_whole_trajectories_of_all_passes() -> None:
    _, found = stage(b2_config())
    whole = trajectories(found, torch.cat([part.rows for part in found.parts]))
    assert found.advantages.extremes is not None
    kept = trajectories(found, found.advantages.extremes.rows)
    assert whole == Counter({leaf: 2 * count for leaf, count in kept.items()})
    assert len(found.parts) == -(-2 * len(kept) // 6)
    for part in found.parts[:-1]:
        assert sum(trajectories(found, part.rows).values()) == 6 * 3
        assert part.total == part.count == 18


def test_what_is_left_over_is_flushed_or_dropped() -> None:
    size = 5
    _, flushed = stage(b2_config(training={"trajectories_per_update": size}))
    _, dropped = stage(b2_config(training={"trajectories_per_update": size, "tail": "drop"}))
    sizes = [part.count // 3 for part in flushed.parts]
    assert 0 < sizes[-1] < size
    assert [part.count // 3 for part in dropped.parts] == sizes[:-1]
    for mine, theirs in zip(flushed.parts, dropped.parts, strict=False):
        assert torch.equal(mine.rows, theirs.rows)
    assert flushed.parts[-1].total == 3 * size  # each trajectory weighs as much as in a whole update


def test_dropping_too_few_leaves_a_row_without_an_update() -> None:
    _, found = stage(b2_config(training={"trajectories_per_update": 1000, "tail": "drop"}))
    assert [part.count for part in found.parts] == [0]


def test_passes_are_shuffled_anew_and_depend_on_the_update() -> None:
    config = b2_config(training={"trajectories_per_update": 1})
    trainer, found = stage(config)
    order = [part.rows[0].item() for part in found.parts]
    half = len(order) // 2
    assert sorted(order[:half]) == sorted(order[half:])
    assert order[:half] != order[half:]
    later = partition([found.batch], [found.advantages], config, trainer._runtime, update=7)
    assert [part.rows[0].item() for part in later] != order


# --- pairs ---------------------------------------------------------------------------------------------------------


def test_pairs_are_the_best_and_the_worst_of_a_start_noise_at_one_step() -> None:
    config = b2_config(objective={"surrogate": "pair"}, training={"trajectories_per_update": 2})
    _, found = stage(config)
    walks, total = found.batch.scored.trajectories, found.batch.rewards["total"].view(8, 5)
    leaf = first_leaves(walks)
    seen = 0
    for part in found.parts:
        for better, worse in part.rows.view(-1, 2).tolist():
            assert walks.step[better] == walks.step[worse]
            root = int(walks.root[better])
            assert root == int(walks.root[worse])
            assert int(leaf[better]) % 5 == int(total[root].argmax())
            assert int(leaf[worse]) % 5 == int(total[root].argmin())
            seen += 1
        assert part.count <= 2 * 2 * 3
    assert seen > 0


def test_the_first_pair_loss_is_ln_two_and_learning_lowers_it() -> None:
    config = b2_config(
        objective={"surrogate": "pair", "pair": {"beta": 5.0, "clip": None}}, training={"trajectories_per_update": None}
    )
    trainer, pipeline = toy_trainer(config)
    losses = [row["policy_loss"] for row in trainer.run(0, quiet)]  # the policy begins at the reference
    assert losses[0] == pytest.approx(0.693147, abs=1e-6)
    assert losses[1] < losses[0]  # the second pass over the same pairs
    assert bool(weights(pipeline).isfinite().all())


def test_without_selection_every_group_with_a_difference_is_a_pair() -> None:
    options = {**B2_SECTIONS["objective"]["advantage"], "selection": None}
    _, found = stage(b2_config(objective={"surrogate": "pair", "advantage": options}))
    assert found.advantages.extremes is not None
    assert len(found.advantages.extremes.pairs) == 8 * 3


# --- combinations --------------------------------------------------------------------------------------------------

COMBINED: dict[str, dict[str, Any]] = {
    "B2-DiffuRL": {},
    "pairs": {"objective": {"surrogate": "pair", "pair": {"beta": 20.0, "clip": None}}},
    "DPOK": {"objective": {"surrogate": "clamped", "kl": {"kind": "velocity", "beta": 1e-4}}},
    "every branch": {"objective": {"advantage": {"statistics": "group", "group_by": "seed"}}},
    "without branches": {
        "sampling": {"plan": {"kind": "plain"}, "samples_per_prompt": 5},
        "objective": {"advantage": {**B2_SECTIONS["objective"]["advantage"], "group_by": "prompt"}},
    },
    "intervals on single-step branches": {
        "sampling": {"plan": {"kind": "branch", "children": 5}},
        "objective": {"weight": "noise_aware", "advantage": {"statistics": "group", "group_by": "seed"}},
    },
    "single-step branches with selection": {
        "sampling": {"plan": {"kind": "branch", "mode": "sampled_k", "k": 2, "children": 5}},
    },
}


def _ddim(sections: dict[str, Any], learning_rate: float) -> RunConfig:
    merged = lay_over(
        {**sections, "objective": {**sections["objective"], "timestep_fraction": 1.0}},
        {
            "sampling": {"steps": STEPS, "rule": "ddim", "noise_level": 1.0, "prompts_per_update": 32},
            "training": {"learning_rate": learning_rate, "trajectories_per_update": 32, "micro_batch": 2000},
        },
    )
    if merged["sampling"]["plan"]["kind"] != "branch":
        merged["sampling"]["plan"] = {**merged["sampling"]["plan"], "last_step_noise": True}
    return toy_config(**merged)


@pytest.mark.parametrize("name", COMBINED)
def test_it_learns_the_optimum(name: str) -> None:
    """Biases that move the mean of an affine Gaussian chain; the best mean is the target."""
    sections: dict[str, Any] = lay_over(B2_SECTIONS, {"curriculum": {"first": 5, "last": 10, "stages": 20}})
    sections["objective"] = {**sections["objective"], **COMBINED[name].get("objective", {})}
    config = _ddim(lay_over(sections, {"sampling": COMBINED[name].get("sampling", {})}), 0.03)
    trainer, pipeline = ddpo_trainer(config)
    before = outlook(pipeline)
    assert before.best - before.reward == pytest.approx(0.64, abs=1e-5)
    for index in range(30):
        trainer.run(index, quiet)
    after = outlook(pipeline)
    assert after.best - after.reward < 0.1


# --- a prompt for every start noise --------------------------------------------------------------------------------


def test_uniform_draws_repeat_prompts_with_other_noise() -> None:
    config = b2_config(sampling={"prompts_per_update": 40})
    trainer, _ = toy_trainer(config, prompts=(Prompt("0.10"), Prompt("0.20"), Prompt("0.30")))
    (batch,) = trainer._collector.collect(0, quiet)
    assert Counter(batch.prompts).total() == 40
    assert set(batch.prompts) == {"0.10", "0.20", "0.30"}
    assert len(torch.unique(batch.scored.trajectories.final, dim=0)) == 40 * 5


def test_uniform_draws_have_the_right_frequencies() -> None:
    trainer, _ = toy_trainer(b2_config(sampling={"prompts_per_update": 50}))
    drawn: Counter[str] = Counter()
    for index in range(8):
        drawn.update(trainer._collector.collect(index, quiet)[0].prompts)
    expected = 400 / len(PROMPTS)
    spread = (expected * (1 - 1 / len(PROMPTS))) ** 0.5
    assert max(abs(drawn[prompt.text] - expected) for prompt in PROMPTS) < 4 * spread
