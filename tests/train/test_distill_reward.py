"""Students of a linear teacher on Gaussian estimates: the best linear student is known, and so is each level's sum.

x0 is N(0, I) and an estimate at sigma is x0 + sigma d n with n ~ N(0, I). The teacher scores w . x0. On estimates it
correlates with that by w.w / sqrt(w.w (w.w + sigma^2 w.d^2 w)); the least squares fit by the root of
w . (1 + sigma^2 d^2)^-1 w / w.w, which is more wherever d varies.
"""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from difalign.core.errors import ConfigError
from difalign.core.student_bank import read_bank
from difalign.objective.distillation import DistillationLoss, decayed_rate
from difalign.reward_models.noise_aware import NoiseAwareReward
from difalign.train.distill_reward import (
    DistillationProgress,
    DistillationSettings,
    StoredEstimates,
    batches,
    distill,
    evaluate,
    prompt_numbers,
)
from tests.teachers import LinearReward, linear_reward

SIGMAS = (0.4, 0.8)
WEIGHT = torch.ones(12)
SPREAD = torch.tensor([3.0] * 6 + [0.3] * 6)  # d: half of the pixels are hard to tell
QUICK = DistillationSettings(curriculum=SIGMAS, learning_rate=3e-2, batch_size=30, seed=7)


def table(*, prompts: int = 4, samples: int = 30, seed: int = 0) -> StoredEstimates:
    source = torch.Generator().manual_seed(seed)
    clean = torch.randn(prompts * samples, 12, generator=source)
    noise = torch.randn(len(SIGMAS), prompts * samples, 12, generator=source)
    estimates = {s: (clean + s * SPREAD * n).reshape(-1, 3, 2, 2) for s, n in zip(SIGMAS, noise, strict=True)}
    texts = tuple(f"prompt {row // samples}" for row in range(prompts * samples))
    return StoredEstimates(texts, clean @ WEIGHT, estimates)


def spearman_of(correlation: float) -> float:
    """Of a bivariate Gaussian."""
    return 6 / math.pi * math.asin(correlation / 2)


def weights(folder: Path, teacher: LinearReward) -> dict[float, Tensor]:
    bank = NoiseAwareReward.from_pretrained(folder, teacher=teacher)
    found = {}
    for sigma in bank.levels:
        student = bank._scorers[sigma]
        assert isinstance(student, LinearReward)
        found[sigma] = torch.cat([tensor.flatten() for tensor in student.model.state_dict().values()])
    return found


def test_students_rank_noisy_estimates_as_well_as_can_be(tmp_path: Path):
    teacher, heldout = linear_reward(WEIGHT), table(prompts=20, samples=100, seed=1)
    settings = replace(QUICK, batch_size=100, epochs=5)
    distill(teacher, table(prompts=20, samples=100), settings=settings, folder=tmp_path)
    students = evaluate(NoiseAwareReward.from_pretrained(tmp_path, teacher=teacher), heldout, SIGMAS)
    untaught = evaluate(teacher, heldout, SIGMAS)
    for sigma in SIGMAS:
        variance = 1 + (sigma * SPREAD) ** 2
        best = spearman_of(float((1 / variance).mean().sqrt()))
        base = spearman_of(float(1 / variance.mean().sqrt()))
        assert best > base + 0.07
        assert students[sigma].spearman.mean == pytest.approx(best, abs=0.03)
        assert untaught[sigma].spearman.mean == pytest.approx(base, abs=0.03)
        assert students[sigma].squared_error.mean < 0.6 * untaught[sigma].squared_error.mean
        assert students[sigma].survival.mean > untaught[sigma].survival.mean
        assert students[sigma].spearman.prompts == 20


def by_hand(data: StoredEstimates, settings: DistillationSettings) -> dict[float, Tensor]:
    """The curriculum written out: weights go on, the optimiser and its rate begin anew."""
    layer = copy.deepcopy(linear_reward(WEIGHT).model).requires_grad_(True)
    found = {}
    for level, sigma in enumerate(settings.curriculum):
        optimizer = torch.optim.AdamW(layer.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
        plan = batches(prompt_numbers(data.prompts), size=settings.batch_size, together=False, key=(7, level, 0))
        for step, rows in enumerate(list(plan)):
            optimizer.param_groups[0]["lr"] = decayed_rate(step, steps=4, first=3e-2, last_share=0.5)
            loss = (layer(data.estimates[sigma][rows].flatten(1)).squeeze(1) - data.target[rows]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(layer.parameters(), 5.0)
            optimizer.step()
        found[sigma] = torch.cat([tensor.detach().clone().flatten() for tensor in layer.state_dict().values()])
    return found


def test_levels_are_trained_as_written_out(tmp_path: Path):
    """Bit for bit; so the second level starts from the first's weights and not from its moments."""
    teacher, data = linear_reward(WEIGHT), table()
    seen: list[DistillationProgress] = []
    bank = distill(teacher, data, settings=QUICK, folder=tmp_path, progress=seen.append)
    expected, found = by_hand(data, QUICK), weights(tmp_path, teacher)
    for sigma in SIGMAS:
        assert torch.equal(found[sigma], expected[sigma])
    assert bank.complete
    assert [(level.sigma, level.steps) for level in bank.levels] == [(0.4, 4), (0.8, 4)]
    assert [(at.level, at.step, at.steps) for at in seen] == [
        (level, step, 4) for level in (0, 1) for step in (1, 2, 3, 4)
    ]
    assert [at.learning_rate for at in seen] == pytest.approx([3e-2, 2.5e-2, 2e-2, 1.5e-2] * 2)
    assert [level.last_loss for level in bank.levels] == [seen[3].loss, seen[7].loss]
    assert torch.equal(teacher.model.state_dict()["weight"][0], WEIGHT)
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())


def test_the_cleaner_level_matters(tmp_path: Path):
    teacher, data = linear_reward(WEIGHT), table()
    distill(teacher, data, settings=QUICK, folder=tmp_path / "both")
    distill(teacher, data, settings=replace(QUICK, curriculum=(0.8,)), folder=tmp_path / "noisy")
    with_cleaner, alone = weights(tmp_path / "both", teacher), weights(tmp_path / "noisy", teacher)
    assert not torch.allclose(with_cleaner[0.8], alone[0.8], atol=1e-2)
    with pytest.raises(ValueError, match=r"write 0\.4, 0\.8"):
        replace(QUICK, curriculum=(0.8, 0.4))


def test_one_level_can_be_learned_by_heart(tmp_path: Path):
    """Estimates that are half of x0 in a known way: the error all but goes."""
    clean = table()
    data = replace(clean, estimates={0.4: 0.5 * torch.randn(120, 3, 2, 2, generator=torch.Generator().manual_seed(3))})
    data = replace(data, target=2 * data.estimates[0.4].flatten(1) @ WEIGHT)
    settings = replace(QUICK, curriculum=(0.4,), epochs=40)
    level = distill(linear_reward(WEIGHT), data, settings=settings, folder=tmp_path).levels[0]
    assert level.last_loss < level.first_loss / 10


class Cut(Exception):
    pass


@pytest.mark.parametrize("done", [0, 1])
def test_training_that_was_cut_short_ends_as_it_would_have(tmp_path: Path, done: int):
    teacher, data = linear_reward(WEIGHT), table()

    def cut(at: DistillationProgress) -> None:
        if (at.level, at.step) == (done, 3):
            raise Cut

    distill(teacher, data, settings=QUICK, folder=tmp_path / "whole")
    with pytest.raises(Cut):
        distill(teacher, data, settings=QUICK, folder=tmp_path / "cut", progress=cut)
    if done:
        assert len(read_bank(tmp_path / "cut").levels) == done
    seen: list[DistillationProgress] = []
    bank = distill(teacher, data, settings=QUICK, folder=tmp_path / "cut", resume=True, progress=seen.append)
    assert bank == read_bank(tmp_path / "whole")  # the hashes of the files among it
    assert min(at.level for at in seen) == done
    assert distill(teacher, data, settings=QUICK, folder=tmp_path / "cut", resume=True) == bank


def test_the_seed_decides(tmp_path: Path):
    teacher, data = linear_reward(WEIGHT), table()
    first, again, other = (
        distill(teacher, data, settings=replace(QUICK, seed=seed), folder=tmp_path / name)
        for seed, name in ((7, "first"), (7, "again"), (8, "other"))
    )
    assert first == again
    assert first.levels[0].sha256 != other.levels[0].sha256


def test_another_run_is_not_gone_on_with(tmp_path: Path):
    teacher, data = linear_reward(WEIGHT), table()
    bank = distill(teacher, data, settings=QUICK, folder=tmp_path)
    with pytest.raises(ConfigError, match="already holds a bank"):
        distill(teacher, data, settings=QUICK, folder=tmp_path)
    for settings, said in (
        (replace(QUICK, curriculum=(0.4, 0.9)), "another curriculum"),
        (replace(QUICK, loss=DistillationLoss(ranking_weight=1.0)), r"another loss\.ranking_weight"),
    ):
        with pytest.raises(ConfigError, match=said):
            distill(teacher, data, settings=settings, folder=tmp_path, resume=True)
    with pytest.raises(ConfigError, match="other weights"):
        distill(linear_reward(2 * WEIGHT), data, settings=QUICK, folder=tmp_path, resume=True)
    assert read_bank(tmp_path) == bank


def test_the_ranking_loss_learns_to_rank(tmp_path: Path):
    """Alone, from a teacher whose scores are worthless on estimates: it orders, whatever the level of its scores."""
    data = table(prompts=20, samples=50)
    loss = DistillationLoss(error_weight=0.0, ranking_weight=1.0)
    settings = replace(QUICK, curriculum=(0.4,), epochs=8, batch_size=100, loss=loss)
    blind = linear_reward(torch.zeros(12))
    distill(blind, data, settings=settings, folder=tmp_path)
    bank = NoiseAwareReward.from_pretrained(tmp_path, teacher=blind)
    best = spearman_of(float((1 / (1 + (0.4 * SPREAD) ** 2)).mean().sqrt()))
    assert evaluate(bank, table(prompts=20, samples=50, seed=1), [0.4])[0.4].spearman.mean > best - 0.1


def test_batches_hold_every_row_once_but_the_odd_ones():
    belong = prompt_numbers([f"{row % 5}" for row in range(50)])
    found = list(batches(belong, size=8, together=False, key=(1, 2)))
    assert [batch.numel() for batch in found] == [8] * 6
    assert len(set(torch.cat(found).tolist())) == 48
    assert torch.equal(torch.cat(found), torch.cat(list(batches(belong, size=8, together=False, key=(1, 2)))))
    assert not torch.equal(torch.cat(found), torch.cat(list(batches(belong, size=8, together=False, key=(1, 3)))))
    for batch in batches(belong, size=10, together=True, key=(1,)):
        assert len(set(belong[batch].tolist())) == 1
    assert [batch.numel() for batch in batches(belong, size=80, together=False, key=(1,))] == [50]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (replace(table(), target=torch.full((120,), math.nan)), r"rows \[0, 1, 2, 3, 4, 5\] are not finite"),
        (StoredEstimates((), torch.zeros(0), {}), "no trajectories"),
        (replace(table(), estimates={0.4: table().estimates[0.4]}), r"no estimates at sigma 0\.8"),
    ],
)
def test_tables_that_cannot_be_learned_from(tmp_path: Path, data: StoredEstimates, said: str):
    with pytest.raises(ValueError, match=said):
        distill(linear_reward(WEIGHT), data, settings=QUICK, folder=tmp_path)


def test_rows_must_match():
    with pytest.raises(ValueError, match="one of each a trajectory"):
        StoredEstimates(("a",), torch.zeros(2), {})


def test_a_loss_that_is_not_finite_stops_and_keeps_what_is_done(tmp_path: Path):
    data = table()
    broken = replace(data, estimates={**data.estimates, 0.8: torch.full((120, 3, 2, 2), math.inf)})
    with pytest.raises(FloatingPointError, match=r"sigma 0\.8, step 1"):
        distill(linear_reward(WEIGHT), broken, settings=QUICK, folder=tmp_path)
    assert [level.sigma for level in read_bank(tmp_path).levels] == [0.4]


@pytest.mark.parametrize("change", [{"learning_rate": 0.0}, {"epochs": 0}, {"max_grad_norm": math.inf}])
def test_settings_that_train_nothing(change: dict[str, float]):
    with pytest.raises(ValueError, match=next(iter(change))):
        replace(QUICK, **change)
