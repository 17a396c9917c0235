"""A student of latents against the best score there is: Gaussian latents and a linear reward give it in closed form."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from difalign.core.errors import ConfigError
from difalign.core.student_bank import BANK_FILE, read_bank
from difalign.core.types import Reading
from difalign.objective.distillation import DistillationLoss
from difalign.reward_models.latent_network import LatentNetwork
from difalign.reward_models.noise_aware import NoiseAwareReward
from difalign.train.distill_latents import LatentDistillationSettings, LatentProgress, _plan, distill_latents
from difalign.train.distill_reward import evaluate, prompt_numbers
from difalign.train.latent_table import LatentTable, StoredLatents, channel_statistics, in_memory
from difalign.train.student_state import STATE_FILE
from tests.teachers import linear_reward
from tests.train.latent_lessons import SIGMAS, WEIGHT, BlackBox, Directions, bayes_risk, lessons, small_network

BRIEF = LatentDistillationSettings(levels=SIGMAS, epochs=2, batch_size=32, learning_rate=3e-3, warmup=2, seed=5)
LEARNS = LatentDistillationSettings(levels=SIGMAS, epochs=12, learning_rate=3e-3, weight_decay=0.01, warmup=20)


def teach(
    folder: Path,
    table: LatentTable,
    settings: LatentDistillationSettings = BRIEF,
    *,
    network: LatentNetwork | None = None,
    resume: bool = False,
    progress: object = None,
) -> NoiseAwareReward:
    """Distil from a black box; what its folder then loads as."""
    distill_latents(
        small_network() if network is None else network,
        table,
        teacher=BlackBox(),
        reader=Directions([]),
        reader_name="directions",
        settings=settings,
        folder=folder,
        resume=resume,
        progress=progress,  # type: ignore[arg-type]
    )
    return NoiseAwareReward.from_pretrained(folder, teacher=BlackBox(), reader=Directions([]))


def scores(reward: NoiseAwareReward, table: StoredLatents, sigma: float) -> Tensor:
    latents = table.latents(sigma, torch.arange(len(table.prompts)), ("guided",))
    return reward.score(latents, table.prompts, sigma=sigma).scores


def weights(folder: Path) -> bytes:
    return (folder / "latent_student.safetensors").read_bytes()


@pytest.mark.parametrize("turned", [pytest.param(False, marks=pytest.mark.slow), True])
def test_it_learns_the_best_score_there_is(tmp_path: Path, turned: bool):
    """By a teacher without weights. Turned: the prompt decides the sign, so it must have been read."""
    reward = teach(tmp_path, lessons(8192, turned=turned), LEARNS)
    heldout = lessons(8192, seed=1, turned=turned)
    sign = torch.tensor([1.0 if "more" in prompt else -1.0 for prompt in heldout.prompts])
    for sigma in SIGMAS:
        found = scores(reward, heldout, sigma)
        assert float((found - heldout.target).square().mean()) == pytest.approx(bayes_risk(sigma), rel=0.08)
        # Against the best score itself there is no noise of sampling: what is left is a few percent of its variance.
        latents = heldout.sources["guided"][SIGMAS.index(sigma)].flatten(1)
        best = sign * (latents @ WEIGHT) / (1 + sigma**2)
        assert float((found - best).square().mean()) < 0.03 * float(WEIGHT @ WEIGHT)


def test_the_noise_decides(tmp_path: Path):
    """The same latents at two levels, to be scored with opposite signs, by one network."""
    table = lessons(2048)
    clean = (table.target[:, None] * WEIGHT / (WEIGHT @ WEIGHT)).unflatten(1, (2, 2, 2))
    seen = {"guided": torch.stack([clean, -clean])}
    reward = teach(tmp_path, replace(table, sources=seen), replace(LEARNS, epochs=20))
    for sigma, sign in zip(SIGMAS, (1, -1), strict=True):
        found = reward.score(sign * clean, table.prompts, sigma=sigma).scores
        assert float((found - table.target).square().mean()) < 0.02 * float(WEIGHT @ WEIGHT)


def test_the_ranking_loss_alone_orders(tmp_path: Path):
    loss = DistillationLoss(error_weight=0.0, ranking_weight=1.0)
    reward = teach(tmp_path, lessons(4096, prompts=32), replace(LEARNS, loss=loss))
    heldout = lessons(4096, prompts=32, seed=1)
    found = evaluate(reward, heldout, SIGMAS)
    for sigma in SIGMAS:
        best = 6 / math.pi * math.asin(1 / math.sqrt(1 + sigma**2) / 2)  # Spearman's of a bivariate Gaussian
        assert found[sigma].spearman.mean == pytest.approx(best, abs=0.04)


def test_several_sources_are_read_beside_each_other(tmp_path: Path):
    """Half of what decides stands in each; one source alone leaves half of the variance."""
    table, still = lessons(4096), torch.zeros(2, 4096, 1, 2, 2)
    guided = table.sources["guided"]
    clean = (table.target[:, None] * WEIGHT / (WEIGHT @ WEIGHT)).unflatten(1, (2, 2, 2)).expand_as(guided)
    half = torch.randn(guided.shape, generator=torch.Generator().manual_seed(2))
    sources = {"guided": clean + half, "conditional": clean - half, "state": still}
    table = StoredLatents(table.prompts, table.target, SIGMAS, sources)  # type: ignore[arg-type]
    network = small_network()
    both = LatentNetwork(replace(network.config, sources=("guided", "conditional")))
    reward = teach(tmp_path / "both", table, LEARNS, network=both)
    assert reward.reading(SIGMAS[0]) == Reading(("guided", "conditional"), decoded=False)
    with_both = evaluate(reward, table, SIGMAS)[SIGMAS[0]].squared_error.mean
    alone = evaluate(teach(tmp_path / "one", table, LEARNS), table, SIGMAS)[SIGMAS[0]].squared_error.mean
    assert with_both < 0.1 * alone


class Cut(Exception):
    pass


@pytest.mark.parametrize("average", [0.0, 0.9])
@pytest.mark.parametrize("at", [2, 7, 11])
def test_training_that_was_killed_ends_as_it_would_have(tmp_path: Path, at: int, average: float):
    """Before anything is stored, between two stored points, and in the last epoch."""
    table, settings = lessons(192), replace(BRIEF, checkpoint_every=3, average=average)

    def cut(progress: LatentProgress) -> None:
        if progress.step == at:
            raise Cut

    teach(tmp_path / "whole", table, settings)
    with pytest.raises(Cut):
        teach(tmp_path / "cut", table, settings, progress=cut)
    assert (tmp_path / "cut" / STATE_FILE).exists() == (at >= 3)
    steps: list[int] = []
    teach(tmp_path / "cut", table, settings, resume=True, progress=lambda progress: steps.append(progress.step))
    assert steps == list(range(at // 3 * 3 + 1, 13))
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")
    assert read_bank(tmp_path / "cut") == read_bank(tmp_path / "whole")
    assert not (tmp_path / "cut" / STATE_FILE).exists()
    again = teach(tmp_path / "cut", table, settings, resume=True, progress=cut)
    assert again.levels == SIGMAS


def test_another_run_is_not_gone_on_with(tmp_path: Path):
    table, settings = lessons(192), replace(BRIEF, checkpoint_every=3)

    def cut(progress: LatentProgress) -> None:
        if progress.step == 4:
            raise Cut

    with pytest.raises(Cut):
        teach(tmp_path / "begun", table, settings, progress=cut)
    for other in (
        {"settings": replace(settings, seed=6)},
        {"network": small_network(seed=1)},
        {"table": lessons(192, seed=1)},
    ):
        with pytest.raises(ConfigError, match="other data, settings, teacher or network"):
            teach(tmp_path / "begun", **{"table": table, "settings": settings, **other}, resume=True)  # type: ignore[arg-type]
    teach(tmp_path / "done", table)
    with pytest.raises(ConfigError, match="already holds a bank"):
        teach(tmp_path / "done", table)
    with pytest.raises(ConfigError, match="another seed"):
        teach(tmp_path / "done", table, replace(BRIEF, seed=6), resume=True)
    with pytest.raises(ConfigError, match="another network"):
        teach(tmp_path / "done", table, network=small_network(depth=2), resume=True)


def test_the_bank_says_what_it_is(tmp_path: Path):
    reward = teach(tmp_path, lessons(192), replace(BRIEF, whole_range=True))
    bank = read_bank(tmp_path)
    assert (bank.kind, bank.teacher, bank.teacher_sha256, bank.span) == ("latent", "black-box", None, SIGMAS)
    assert bank.reader is not None
    assert (bank.reader.name, bank.reader.width) == ("directions", 2)
    assert [level.steps for level in bank.levels] == [12, 12]
    assert all(level.last_loss < level.first_loss for level in bank.levels)
    assert {level.file for level in bank.levels} == {"latent_student.safetensors"}
    assert reward.reading(1.0) == Reading(("guided",), decoded=False)


def test_constants_are_those_of_the_data(tmp_path: Path):
    table = lessons(192)
    shifted = replace(table, sources={"guided": 3 * table.sources["guided"] + 1}, target=10 + table.target)
    network = small_network()
    teach(tmp_path, shifted, network=network)
    seen = shifted.sources["guided"].transpose(0, 2).flatten(1)
    assert torch.allclose(network.latent_mean.flatten(), seen.mean(dim=1), atol=1e-5)
    assert torch.allclose(network.latent_std.flatten(), seen.std(dim=1, correction=0), atol=1e-5)
    assert float(network.target_mean) == pytest.approx(float(shifted.target.mean()))
    mean, _ = channel_statistics(shifted, SIGMAS[:1], ("guided",))
    assert torch.allclose(mean, shifted.sources["guided"][0].transpose(0, 1).flatten(1).mean(dim=1), atol=1e-5)


def test_levels_are_dealt_out_evenly_and_pairs_share_theirs():
    settings = LatentDistillationSettings(levels=(0.1, 0.2, 0.3), epochs=3, batch_size=30)
    belong = prompt_numbers([f"{row % 6}" for row in range(60)])
    plan = list(_plan(belong, settings))
    assert len(plan) == 6
    assert all(Counter(level.tolist()) == {0: 10, 1: 10, 2: 10} for _, _, level in plan)
    assert len({tuple(level.tolist()) for _, _, level in plan}) == 6
    assert sorted(torch.cat([rows for epoch, rows, _ in plan if epoch == 0]).tolist()) == list(range(60))
    pairs = replace(settings, loss=DistillationLoss(ranking_weight=1.0))
    for _, rows, level in _plan(belong, pairs):
        found = {(owner, one) for owner, one in zip(belong[rows].tolist(), level.tolist(), strict=True)}
        assert len(found) == 3
        assert len({one for _, one in found}) == 3


def test_the_average_is_what_is_written(tmp_path: Path):
    table = lessons(192)
    teach(tmp_path / "own", table)
    teach(tmp_path / "average", table, replace(BRIEF, average=0.9))
    assert weights(tmp_path / "own") != weights(tmp_path / "average")
    assert weights(tmp_path / "own") == weights_again(tmp_path / "again", table)


def weights_again(folder: Path, table: StoredLatents) -> bytes:
    teach(folder, table)
    return weights(folder)


def test_half_precision_trains_too(tmp_path: Path):
    reward = teach(tmp_path, lessons(4096), replace(LEARNS, half=True))
    for sigma, found in evaluate(reward, lessons(4096, seed=1), SIGMAS).items():
        assert found.squared_error.mean == pytest.approx(bayes_risk(sigma), rel=0.15)


def test_a_teacher_with_weights_is_known_by_them(tmp_path: Path):
    teacher = linear_reward(torch.ones(12))
    distill_latents(
        small_network(),
        lessons(192),
        teacher=teacher,
        reader=Directions([]),
        reader_name="directions",
        settings=BRIEF,
        folder=tmp_path,
    )
    NoiseAwareReward.from_pretrained(tmp_path, teacher=teacher, reader=Directions([]))
    with pytest.raises(ValueError, match="other weights"):
        NoiseAwareReward.from_pretrained(tmp_path, teacher=linear_reward(torch.zeros(12)), reader=Directions([]))


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (replace(lessons(64), target=torch.full((64,), math.nan)), "rows .* are not finite"),
        (replace(lessons(64), sources={"guided": torch.full((2, 64, 2, 2, 2), math.inf)}), "sigma 0.5 are not finite"),
        (replace(lessons(64), sigmas=(0.5, 1.0)), r"no latents at sigma 1\.5"),
        (replace(lessons(64), sources={"state": torch.zeros(2, 64, 2, 2, 2)}), "no guided latents, only state"),
        (StoredLatents((), torch.zeros(0), SIGMAS, {}), "no trajectories"),
    ],
)
def test_tables_that_cannot_be_learned_from(tmp_path: Path, table: StoredLatents, said: str):
    with pytest.raises(ValueError, match=said):
        teach(tmp_path, table)
    assert not (tmp_path / BANK_FILE).exists()


def test_a_table_is_read_into_memory_once():
    table = lessons(2500)
    held = in_memory(table, SIGMAS[1:], ("guided",))
    rows = torch.tensor([2400, 3, 3])
    assert held.prompts == table.prompts
    expected = table.latents(SIGMAS[1], rows, ("guided",))
    assert torch.equal(held.latents(SIGMAS[1], rows, ("guided",)), expected.half().float())
    with pytest.raises(ValueError, match=r"no latents at sigma 0\.5"):
        held.latents(SIGMAS[0], rows, ("guided",))


def test_tables_must_match():
    with pytest.raises(ValueError, match=r"give \[L, N, C, h, w\]"):
        StoredLatents(("a",), torch.zeros(1), SIGMAS, {"guided": torch.zeros(1, 2, 2, 2, 2)})
    with pytest.raises(ValueError, match="give one a trajectory"):
        StoredLatents(("a",), torch.zeros(2), SIGMAS, {})


@pytest.mark.parametrize(
    "change", [{"learning_rate": 0.0}, {"epochs": 0}, {"rate": "step"}, {"average": 1.5}, {"checkpoint_every": 0}]
)
def test_settings_that_train_nothing(change: dict[str, float]):
    with pytest.raises(ValueError, match=next(iter(change))):
        replace(BRIEF, **change)
