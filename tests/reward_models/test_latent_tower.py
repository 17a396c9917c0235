"""A teacher's picture tower on latents: at first it is the teacher, then it is told the noise."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from difalign.core.types import Source
from difalign.reward_models.clip import ClipReward
from difalign.reward_models.latent_student import LatentStudent
from difalign.reward_models.latent_tower import LatentTower, LatentTowerConfig
from difalign.reward_models.student_loading import _made
from tests.reward_models.test_clip import folder  # noqa: F401  # a fixture

PROMPTS = ["a red square", "two cats", "a red square"]


@pytest.fixture
def reward(folder: Path) -> ClipReward:  # noqa: F811  # the fixture
    """A teacher that does not round pictures to 8 bits, so that what it reads is linear in them."""
    return ClipReward.from_pretrained(folder, preprocess="tensor")


def tower_of(teacher: ClipReward, *sources: Source) -> LatentTower:
    """Latents that are their own pictures: the decoder is the identity."""
    side = teacher.model.config.vision_config.image_size
    tower = LatentTower.of_teacher(teacher, channels=3, size=side, sources=sources)
    pictures = torch.rand(64, 3, side, side, generator=torch.Generator().manual_seed(1))
    left = tower.fit_patches(pictures, teacher.embed_patches(pictures), source=sources[-1])
    assert left < 1e-6
    return tower


def latents(teacher: ClipReward, *, channels: int = 3) -> Tensor:
    side = teacher.model.config.vision_config.image_size
    return torch.rand(3, channels, side, side, generator=torch.Generator().manual_seed(2))


def test_where_the_decoder_is_linear_it_begins_as_its_teacher_at_any_noise(reward: ClipReward):
    student, x = LatentStudent(tower_of(reward, "guided"), reward), latents(reward)
    wanted = reward.score(x, PROMPTS).scores
    for sigma in (0.1, 0.9):
        torch.testing.assert_close(student.score(x, PROMPTS, sigma=sigma).scores, wanted, atol=1e-4, rtol=0)


def test_it_begins_in_the_unit_of_its_teacher(folder: Path):  # noqa: F811  # the fixture
    teacher = ClipReward.from_pretrained(folder, scale="logit", preprocess="tensor")
    student, x = LatentStudent(tower_of(teacher, "guided"), teacher), latents(teacher)
    wanted = teacher.score(x, PROMPTS).scores
    torch.testing.assert_close(student.score(x, PROMPTS, sigma=0.5).scores, wanted, atol=1e-2, rtol=1e-3)


def test_it_begins_with_one_source_and_the_others_can_be_learnt(reward: ClipReward):
    tower = tower_of(reward, "state", "conditional")
    student, x = LatentStudent(tower, reward), latents(reward, channels=6)
    alone = LatentStudent(tower_of(reward, "conditional"), reward).score(x[:, 3:], PROMPTS, sigma=0.5).scores
    torch.testing.assert_close(student.score(x, PROMPTS, sigma=0.5).scores, alone, atol=1e-6, rtol=0)
    tower.requires_grad_(True)
    student.score(x, PROMPTS, sigma=0.5).scores.sum().backward()
    assert tower.patches.weight.grad is not None
    assert bool(tower.patches.weight.grad[:, : tower.patches.in_features // 2].any())


def test_once_taught_it_reads_each_row_at_its_own_noise(reward: ClipReward):
    tower = tower_of(reward, "guided")
    with torch.no_grad():
        for name, parameter in tower.named_parameters():
            if "modulation" in name:
                parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(len(name)))
    x, said = latents(reward), reward.embed_texts(PROMPTS)
    tower.requires_grad_(False)
    mixed = tower(x, torch.tensor([0.2, 0.6, 0.9]), said)
    for row, sigma in enumerate((0.2, 0.6, 0.9)):
        torch.testing.assert_close(mixed[row], tower(x, torch.full((3,), sigma), said)[row], atol=1e-5, rtol=0)
    assert float((mixed[1] - tower(x, torch.full((3,), 0.2), said)[1]).abs()) > 1e-4


def test_the_description_makes_the_same_network(reward: ClipReward):
    tower = tower_of(reward, "guided", "state")
    described = tower.config.to_json()
    again = _made(described)
    again.load_state_dict(tower.state_dict())
    x, said = latents(reward, channels=6), reward.embed_texts(PROMPTS)
    assert torch.equal(again(x, torch.full((3,), 0.5), said), tower(x, torch.full((3,), 0.5), said))
    assert again.config == LatentTowerConfig.from_json(described) == tower.config


def test_the_teacher_stays_as_it_is(reward: ClipReward):
    before = {name: tensor.clone() for name, tensor in reward.model.state_dict().items()}
    tower = tower_of(reward, "guided").requires_grad_(True)
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in reward.model.state_dict().items())


def test_latents_that_cannot_be_cut_alike_are_refused(reward: ClipReward):
    with pytest.raises(ValueError, match=r"latents of 7 x 7 cannot be cut .*start: random"):
        LatentTower.of_teacher(reward, channels=3, size=7, sources=("guided",))


def test_a_description_that_lacks_something_is_refused():
    with pytest.raises(ValueError, match="no description of a latent tower"):
        LatentTowerConfig.from_json({"make": "tower", "channels": 2})


def test_the_seed_decides_the_first_weights_and_nothing_else_is_drawn_from(reward: ClipReward):
    before = torch.random.get_rng_state()
    config = tower_of(reward, "guided").config
    first, again, other = (LatentTower(config, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["patches.weight"], other["patches.weight"])
    assert torch.equal(torch.random.get_rng_state(), before)
