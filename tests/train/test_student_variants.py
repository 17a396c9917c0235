"""Adapters, one network for all levels, and the replay of cleaner levels, taught on estimates whose sums are known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from difalign.core.errors import ConfigError
from difalign.core.student_bank import read_bank
from difalign.core.student_form import StudentForm
from difalign.objective.distillation import DistillationLoss
from difalign.reward_models.noise_aware import NoiseAwareReward
from difalign.reward_models.student_forms import LoraForm, ModulatedForm
from difalign.train.distill_reward import (
    DistillationProgress,
    DistillationSettings,
    StoredEstimates,
    _score,
    distill,
)
from difalign.train.replay import replayed_levels
from tests.teachers import LinearReward, linear_reward

SIGMAS = (0.4, 0.8)
SETTINGS = DistillationSettings(curriculum=SIGMAS, learning_rate=1e-2, batch_size=50, epochs=4, seed=3)


def table(*, rows: int = 400) -> StoredEstimates:
    """What is seen at the second level is what is seen at the first, turned round."""
    source = torch.Generator().manual_seed(0)
    clean = torch.randn(rows, 12, generator=source)
    pictures = clean.reshape(-1, 3, 2, 2)
    texts = tuple(f"prompt {row % 4}" for row in range(rows))
    return StoredEstimates(texts, clean.sum(dim=1), {SIGMAS[0]: pictures, SIGMAS[1]: -pictures})


def normalising_teacher() -> LinearReward:
    layers = nn.Sequential(nn.Linear(12, 32), nn.LayerNorm(32), nn.Linear(32, 1))
    source = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in (*layers[0].parameters(), *layers[2].parameters()):
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=source))
    return LinearReward(layers)


def errors(bank: NoiseAwareReward, data: StoredEstimates) -> list[float]:
    """The mean squared error of each level as a share of what is taught."""
    found = [bank.score(data.estimates[s], data.prompts, sigma=s).scores - data.target for s in SIGMAS]
    return [float(error.square().mean() / data.target.square().mean()) for error in found]


def taught(
    folder: Path, form: StudentForm, settings: DistillationSettings, *, teacher: LinearReward | None = None
) -> NoiseAwareReward:
    teacher = normalising_teacher() if teacher is None else teacher
    distill(teacher, table(), settings=settings, folder=folder, form=form)
    return NoiseAwareReward.from_pretrained(folder, teacher=teacher)


def test_adapters_are_a_small_file_a_level_and_learn(tmp_path: Path):
    """Of a linear teacher, whose sum they must turn round; the weights that it has stay as they are."""
    teacher = LinearReward(nn.Sequential(linear_reward(torch.full((12,), 0.5)).model))
    settings = replace(SETTINGS, learning_rate=3e-2, epochs=20)
    bank = taught(tmp_path, LoraForm(rank=1, alpha=1), settings, teacher=teacher)
    assert max(errors(bank, table())) < 0.02
    found = read_bank(tmp_path)
    assert (found.kind, found.network) == ("lora", {"rank": 1, "alpha": 1, "targets": [], "seed": 0})
    for level in found.levels:
        held = load_file(tmp_path / level.file)
        assert all(".lora_" in f".{name}" for name in held)
        assert sum(tensor.numel() for tensor in held.values()) == 12 + 1
    assert torch.equal(teacher.model.state_dict()["0.weight"], torch.full((1, 12), 0.5))


def test_one_network_reads_all_levels_if_it_sees_them_again(tmp_path: Path):
    """Without replay the second level's lesson, which is the opposite, is the last that it remembers."""
    settings = replace(SETTINGS, epochs=30, batch_size=100, learning_rate=2e-2)
    again = errors(taught(tmp_path / "again", ModulatedForm(), replace(settings, replay=0.5)), table())
    never = errors(taught(tmp_path / "never", ModulatedForm(), settings), table())
    assert max(again) < 0.1
    assert never[1] < 0.1
    assert never[0] > 3 * again[0]


def test_levels_of_one_network_share_its_file(tmp_path: Path):
    bank = taught(tmp_path, ModulatedForm(whole=False), SETTINGS)
    found = read_bank(tmp_path)
    assert len({level.file for level in found.levels}) == 1
    assert {path.name for path in tmp_path.glob("*.safetensors")} == {found.levels[0].file}
    assert all(".noise_modulation." in name for name in load_file(tmp_path / found.levels[0].file))
    assert bank._scorer(SIGMAS[0]) is bank._scorer(SIGMAS[1])


class Cut(Exception):
    pass


@pytest.mark.parametrize("form", [LoraForm(rank=2), ModulatedForm()])
def test_training_that_was_cut_short_ends_as_it_would_have(tmp_path: Path, form: StudentForm):
    settings = replace(SETTINGS, replay=0.3)

    def cut(at: DistillationProgress) -> None:
        if (at.level, at.step) == (1, 3):
            raise Cut

    teacher, data = normalising_teacher(), table()
    whole = distill(teacher, data, settings=settings, folder=tmp_path / "whole", form=form)
    with pytest.raises(Cut):
        distill(teacher, data, settings=settings, folder=tmp_path / "cut", form=form, progress=cut)
    assert distill(teacher, data, settings=settings, folder=tmp_path / "cut", form=form, resume=True) == whole
    with pytest.raises(ConfigError, match="another kind"):
        distill(teacher, data, settings=settings, folder=tmp_path / "cut", resume=True)


@pytest.mark.parametrize("form", [LoraForm(rank=2), ModulatedForm()])
def test_the_ranking_loss_teaches_them_too(tmp_path: Path, form: StudentForm):
    loss = DistillationLoss(error_weight=0.0, ranking_weight=1.0, temperature=1.0)
    bank = taught(tmp_path, form, replace(SETTINGS, loss=loss, replay=0.5, epochs=12))
    data = table()
    for sigma in SIGMAS:
        scores = bank.score(data.estimates[sigma], data.prompts, sigma=sigma).scores
        assert float(torch.corrcoef(torch.stack([scores, data.target]))[0, 1]) > 0.9


def test_a_bank_that_does_not_say_how_its_students_are_made(tmp_path: Path):
    from difalign.core.student_bank import write_bank

    taught(tmp_path, LoraForm(rank=2), replace(SETTINGS, epochs=1))
    write_bank(tmp_path, replace(read_bank(tmp_path), network={"rank": 2}))
    with pytest.raises(ValueError, match="are not described"):
        NoiseAwareReward.from_pretrained(tmp_path, teacher=normalising_teacher())


def test_so_many_rows_are_of_earlier_levels():
    belong = torch.arange(40) % 8
    for step in range(5):
        levels = replayed_levels(belong, 3, share=0.3, together=False, key=(1, step))
        assert int((levels < 3).sum()) == 12
        assert int(levels.max()) == 3
    many = torch.cat([replayed_levels(belong, 3, share=0.5, together=False, key=(step,)) for step in range(60)])
    counts = torch.bincount(many)
    assert counts[3] == 60 * 20
    assert all(abs(int(count) - 400) < 5 * (1200 * 2 / 9) ** 0.5 for count in counts[:3])
    assert not bool((replayed_levels(belong, 0, share=0.5, together=False, key=(1,)) != 0).any())
    whole = replayed_levels(belong, 3, share=0.5, together=True, key=(1,))
    assert len({(int(one), int(level)) for one, level in zip(belong, whole, strict=True)}) == 8
    assert int((whole < 3).sum()) == 20
    for change in (-0.1, 1.0):
        with pytest.raises(ValueError, match="replay"):
            replace(SETTINGS, replay=change)


def test_rows_of_mixed_levels_are_scored_each_at_its_own():
    teacher, data = linear_reward(torch.ones(12)), table()
    rows, noise = torch.tensor([5, 2, 9, 2]), torch.tensor([0.8, 0.4, 0.8, 0.4], dtype=torch.float64)
    expected: Tensor = data.target[rows] * torch.tensor([-1.0, 1.0, -1.0, 1.0])
    assert torch.allclose(_score(teacher, data, rows, noise, torch.arange(4)), expected, atol=1e-5)
    assert torch.allclose(_score(teacher, data, rows, noise, torch.tensor([2, 1])), expected[[2, 1]], atol=1e-5)
