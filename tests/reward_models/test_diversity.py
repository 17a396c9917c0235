"""Diversity within a prompt: its closed form, its limits, and that other prompts do not matter."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from transformers import BitImageProcessor, Dinov2Config, Dinov2Model
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil

from difalign.core.protocols import RewardModel
from difalign.reward_models.diversity import DinoEncoder, DiversityReward, distance_to_others
from tests.reward_models.pictures import as_pillow, eight_bit_pictures
from tests.tiny_models import clip_model, clip_tokenizer, seeded

SIDE = 28
OPTIONS = {"size": {"shortest_edge": 32}, "crop_size": {"height": SIDE, "width": SIDE}, "resample": 3}
PROMPTS = ["a", "b", "a", "a", "b"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dino")
    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, image_size=SIDE, patch_size=7
    )
    with seeded(4):
        Dinov2Model(config).save_pretrained(path)
    BitImageProcessor(**OPTIONS).save_pretrained(path)
    return path


def test_distances_are_those_of_the_definition():
    angles = torch.tensor([0.0, 0.3, 1.0, -0.5, 2.0], dtype=torch.float64)
    vectors = torch.stack([angles.cos(), angles.sin()], dim=1)
    distance, others = distance_to_others(vectors, PROMPTS)
    assert others.tolist() == [2, 1, 2, 2, 1]
    for row, prompt in enumerate(PROMPTS):
        cosines = [
            math.cos(angles[row] - angles[other]) for other in range(5) if other != row and PROMPTS[other] == prompt
        ]
        assert float(distance[row]) == pytest.approx(1 - sum(cosines) / len(cosines))


def test_it_knows_alike_opposite_and_alone():
    vector = torch.tensor([[1.0, 0.0]])
    alike, _ = distance_to_others(vector.repeat(3, 1), ["a"] * 3)
    assert torch.equal(alike, torch.zeros(3))
    opposite, _ = distance_to_others(torch.cat([vector, -vector]), ["a", "a"])
    assert torch.equal(opposite, torch.full((2,), 2.0))
    alone, others = distance_to_others(torch.cat([vector, vector]), ["a", "b"])
    assert alone.isnan().all()
    assert others.tolist() == [0, 0]


@pytest.mark.golden
@pytest.mark.parametrize(("height", "width"), [(32, 32), (40, 57)], ids=str)
def test_dino_embeds_as_transformers(folder: Path, height: int, width: int):
    pixels = eight_bit_pictures(3, height, width)
    inputs = BitImageProcessorPil(**OPTIONS)(as_pillow(pixels), return_tensors="pt")
    with torch.no_grad():
        features = Dinov2Model.from_pretrained(folder).eval()(**inputs).last_hidden_state[:, 0]
    reward = DiversityReward.from_pretrained(folder)
    assert isinstance(reward.encoder, DinoEncoder)
    assert (reward.encoder.embed_images(pixels) - features / features.norm(dim=1, keepdim=True)).abs().max() < 1e-6


def test_only_pictures_of_the_same_prompt_count(folder: Path):
    reward = DiversityReward.from_pretrained(folder, micro_batch=2)
    assert isinstance(reward, RewardModel)
    assert reward.groupwise
    pixels = eight_bit_pictures(5, 32, 32)
    whole = reward.score(pixels, PROMPTS)
    assert whole.valid is None
    assert (whole.scores > 1e-4).all()
    of_a = [0, 2, 3]
    assert torch.allclose(reward.score(pixels[of_a], ["a"] * 3).scores, whole.scores[of_a], atol=1e-6)
    reward.to("cpu")
    copies = reward.score(pixels[[0, 0, 0]], ["a"] * 3).scores
    assert torch.allclose(copies, torch.zeros(3), atol=1e-6)


def test_a_picture_alone_is_not_valid_and_says_why(folder: Path):
    output = DiversityReward.from_pretrained(folder).score(eight_bit_pictures(3, 32, 32), ["a", "b", "a"])
    assert output.valid is not None
    assert output.valid.tolist() == [True, False, True]
    assert output.scores.isnan().tolist() == [False, True, False]
    assert list(output.errors) == [1]
    assert "the only picture of its prompt" in output.errors[1]


def test_its_gradient_drives_pictures_apart(folder: Path):
    reward = DiversityReward.from_pretrained(folder)
    pixels = (0.25 + 0.5 * eight_bit_pictures(3, 32, 32)).requires_grad_(True)
    output = reward.score(pixels, ["a", "a", "alone"])
    before = output.scores[:2].sum()
    before.backward()
    slope = pixels.grad
    assert slope is not None
    assert slope.isfinite().all()  # the NaN of the one alone stays out of it
    assert torch.equal(slope[2], torch.zeros_like(slope[2]))
    with torch.no_grad():
        moved = pixels + 0.01 * slope.sign()
        after = DiversityReward.from_pretrained(folder, preprocess="tensor").score(moved[:2], ["a", "a"]).scores.sum()
    assert after > before


def test_clip_can_be_the_encoder(tmp_path: Path):
    from transformers import CLIPImageProcessor

    tokenizer = clip_tokenizer()
    clip_model(tokenizer, seed=3).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    CLIPImageProcessor(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24}).save_pretrained(tmp_path)
    reward = DiversityReward.from_pretrained(tmp_path, encoder="clip")
    assert (reward.score(eight_bit_pictures(2, 30, 30), ["a", "a"]).scores > 1e-5).all()
    with pytest.raises(ValueError, match="encoder = 'vgg': use one of: dinov2, clip"):
        DiversityReward.from_pretrained(tmp_path, encoder="vgg")
    with pytest.raises(ValueError, match="holds a model of type 'clip', not a Dinov2Model"):
        DiversityReward.from_pretrained(tmp_path)
