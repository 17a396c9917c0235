"""BLIP's two scores against transformers' own forward, differentiable and indifferent to batches."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import BlipConfig, BlipForImageTextRetrieval
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from difalign.core.protocols import RewardModel
from difalign.reward_models.blip_itm import HEADS, BlipReward
from tests.reward_models.bert_words import bert_tokenizer
from tests.reward_models.pictures import as_pillow, eight_bit_pictures
from tests.teachers import check_learns
from tests.tiny_models import seeded

SIDE = 24
PROMPTS = ["a red circle", "two blue squares above a green cross", "a red circle"]
PICTURES = BlipImageProcessorPil(size={"height": SIDE, "width": SIDE})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("blip")
    tokenizer = bert_tokenizer()
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision |= {"image_size": SIDE, "patch_size": 8}
    text = {"vocab_size": len(tokenizer), "hidden_size": 24, "encoder_hidden_size": 16, "intermediate_size": 32}
    text |= {"num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64, "is_decoder": True}
    with seeded(2):
        model = BlipForImageTextRetrieval(BlipConfig(vision_config=vision, text_config=text, image_text_hidden_size=8))
        for parameter in model.parameters():
            parameter.data.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    PICTURES.save_pretrained(path)
    return path


@pytest.mark.golden
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(("height", "width"), [(24, 24), (40, 31)], ids=str)
def test_scores_are_those_of_transformers(folder: Path, head: str, height: int, width: int):
    """One picture after the other, tokens as BLIP's code pads them."""
    pixels = eight_bit_pictures(3, height, width)
    model = BlipForImageTextRetrieval.from_pretrained(folder).eval()
    expected = []
    with torch.no_grad():
        for picture, prompt in zip(as_pillow(pixels), PROMPTS, strict=True):
            tokens = bert_tokenizer()(
                [prompt], padding="max_length", truncation=True, max_length=35, return_tensors="pt"
            )
            output = model(
                input_ids=tokens.input_ids,
                attention_mask=tokens.attention_mask,
                pixel_values=PICTURES(picture, return_tensors="pt")["pixel_values"],
                use_itm_head=head == "itm",
            ).itm_score
            expected.append(output.softmax(dim=-1)[0, 1] if head == "itm" else output[0, 0])
    wanted = torch.stack(expected)
    assert wanted.std() > 1e-4
    assert (BlipReward.from_pretrained(folder, head=head).score(pixels, PROMPTS).scores - wanted).abs().max() < 1e-6


@pytest.mark.parametrize("head", HEADS)
def test_it_is_a_frozen_reward_with_a_gradient(folder: Path, head: str):
    reward = BlipReward.from_pretrained(folder, head=head, micro_batch=2)
    assert isinstance(reward, RewardModel)
    assert reward.differentiable
    assert not any(parameter.requires_grad for parameter in reward.model.parameters())
    pixels = eight_bit_pictures(3, 30, 30).requires_grad_(True)
    scores = reward.score(pixels, PROMPTS).scores
    scores.sum().backward()
    assert pixels.grad is not None
    assert (pixels.grad.flatten(1).norm(dim=1) > 0).all()
    reward.to("cpu")
    with torch.no_grad():
        alone = torch.cat([reward.score(pixels[i : i + 1], PROMPTS[i : i + 1]).scores for i in range(3)])
        assert torch.allclose(alone, reward.score(pixels, PROMPTS).scores, atol=1e-6)


def test_bad_options_and_folders_are_refused(folder: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="head = 'both': use one of: itm, cosine"):
        BlipReward.from_pretrained(folder, head="both")
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(ValueError, match="holds a model of type 'clip', not a BlipForImageTextRetrieval"):
        BlipReward.from_pretrained(tmp_path)


def test_another_network_can_be_taught(folder: Path):
    check_learns(BlipReward.from_pretrained(folder), eight_bit_pictures(3, SIDE, SIDE), PROMPTS)
