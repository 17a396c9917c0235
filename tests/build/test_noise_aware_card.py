"""A card of students names its teacher's card; the bank is made of both."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from difalign.build.cards import load_reward_card
from difalign.build.factory import build_reward
from difalign.core.config_rewards import RewardConfig
from difalign.core.errors import ConfigError
from difalign.core.student_bank import BankLevel, StudentBank, file_sha256, weights_sha256, write_bank
from difalign.core.types import Reading
from difalign.reward_models.clip import ClipReward
from difalign.reward_models.latent_network import LatentNetwork, LatentNetworkConfig
from difalign.reward_models.latent_student import LatentStudent
from difalign.reward_models.noise_aware import NoiseAwareReward
from difalign.reward_models.verifier import VerifierReward
from difalign.train.distill_latents import LatentDistillationSettings, distill_latents
from difalign.train.latent_table import StoredLatents

CARD = """
name: my-students
summary: students of a shipped reward
licence: Apache-2.0
target: difalign.reward_models.noise_aware:NoiseAwareReward
path: bank
teacher: {teacher}
options:
  fallback: error
"""


def build(folder: Path, *, teacher: str = "tiny-clip", fallback: str = "error") -> NoiseAwareReward:
    return built(folder, CARD.format(teacher=teacher), fallback=fallback)


def built(folder: Path, text: str, *, fallback: str = "error") -> NoiseAwareReward:
    card = folder / "my_students.yaml"
    card.write_text(text)
    config = RewardConfig(card=str(card), options={"fallback": fallback})
    composite = build_reward({"my": load_reward_card(str(card))}, {"my": config}, device="cpu")
    reward = composite.terms["my"].reward
    assert isinstance(reward, NoiseAwareReward)
    return reward


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One student of the shipped teacher, whose projection of pictures is turned round."""
    found = load_reward_card("tiny-clip")
    weights = found.weights()
    assert weights is not None
    state = ClipReward.from_pretrained(weights).model.state_dict()
    bank = tmp_path_factory.mktemp("students") / "bank"
    bank.mkdir()
    save_file({"visual_projection.weight": -state["visual_projection.weight"]}, bank / "a.safetensors")
    level = BankLevel(0.5, "a.safetensors", file_sha256(bank / "a.safetensors"), 1, 1.0, 0.5)
    write_bank(bank, StudentBank("tiny-clip", weights_sha256(state), (0.5,), (level,)))
    return bank.parent


def test_teacher_and_students_come_from_their_cards(folder: Path):
    reward, pixels = build(folder), torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    prompts = ["a red circle", "two blue squares"]
    finished, noisy = reward.score(pixels, prompts).scores, reward.score(pixels, prompts, sigma=0.5).scores
    assert torch.allclose(noisy, -finished, atol=1e-6)
    assert finished.abs().max() > 1e-3
    assert build(folder, fallback="teacher").level_of(0.9) == 0


def test_another_teacher_is_refused_in_words(folder: Path):
    with pytest.raises(ConfigError, match=r"reward 'my-students': teacher 'verifier' has no `model`"):
        build(folder, teacher="verifier")
    with pytest.raises(ConfigError, match="unknown"):
        build(folder, teacher="tiny-clop")


def test_a_bank_of_latents_under_a_teacher_without_a_text_tower(tmp_path: Path):
    """The verifier decides; its student reads latents, and prompts by another card."""
    clip = load_reward_card("tiny-clip").weights()
    assert clip is not None
    reader = ClipReward.from_pretrained(clip)
    network = LatentNetwork(LatentNetworkConfig(channels=4, height=4, width=4, text_width=128, hidden=16, heads=2))
    table = StoredLatents(
        ("a red circle", "two blue squares") * 4,
        torch.arange(8.0),
        (0.5,),
        {"guided": torch.randn(1, 8, 4, 4, 4, generator=torch.Generator().manual_seed(0))},
    )
    settings = LatentDistillationSettings(levels=(0.5,), epochs=2, batch_size=4)
    distill_latents(
        network,
        table,
        teacher=VerifierReward(),
        reader=reader,
        reader_name="tiny-clip",
        settings=settings,
        folder=tmp_path / "bank",
    )
    card = CARD.replace("teacher: {teacher}", "teacher: verifier")
    with pytest.raises(ConfigError, match="give reader: tiny-clip in the card"):
        built(tmp_path, card)
    reward = built(tmp_path, card.replace("teacher: verifier", "teacher: verifier\nreader: tiny-clip"))
    assert reward.reading(0.5) == Reading(("guided",), decoded=False)
    noisy = reward.score(table.sources["guided"][0], table.prompts, sigma=0.5).scores
    expected = LatentStudent(network, reader).score(table.sources["guided"][0], table.prompts, sigma=0.5).scores
    assert torch.allclose(noisy, expected, atol=1e-5)
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    finished = reward.score(pixels, table.prompts[:2]).scores
    assert torch.equal(finished, VerifierReward().score(pixels, table.prompts[:2]).scores)
