"""ImageReward against the published package: the same random weights in both, scores and gradients to the picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BlipTextConfig, BlipVisionConfig

from difalign.core.protocols import RewardModel
from difalign.reward_models import image_reward
from difalign.reward_models.image_reward import ImageReward, image_input, load_network, text_config, vision_config
from tests.reward_models import originals
from tests.reward_models.bert_words import bert_tokenizer
from tests.reward_models.pictures import as_pillow, eight_bit_pictures
from tests.teachers import check_learns
from tests.tiny_models import seeded

SIDE, VOCABULARY = 32, 80
PROMPTS = ["a red circle", "two blue squares above a green cross", "a red circle", ""]
VISION = BlipVisionConfig(
    hidden_size=24,
    intermediate_size=96,
    num_hidden_layers=3,
    num_attention_heads=4,
    image_size=SIDE,
    patch_size=8,
    hidden_act="gelu",
    layer_norm_eps=1e-6,
)
TEXT = BlipTextConfig(
    vocab_size=VOCABULARY,
    hidden_size=36,
    encoder_hidden_size=24,
    intermediate_size=72,
    num_hidden_layers=2,
    num_attention_heads=12,
    layer_norm_eps=1e-12,
    max_position_embeddings=64,
    is_decoder=True,
)


class Published(nn.Module):
    """The published parts put together as ``ImageReward`` does it, in small."""

    def __init__(self) -> None:
        super().__init__()
        package = originals.image_reward()
        vit = originals.image_reward("models.BLIP.vit")
        med = originals.image_reward("models.BLIP.med")
        config = BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=36,
            intermediate_size=72,
            num_hidden_layers=2,
            num_attention_heads=12,
            layer_norm_eps=1e-12,
            max_position_embeddings=64,
        )
        config.update({"encoder_width": 24, "add_cross_attention": True, "attn_implementation": "eager"})
        self.blip = nn.Module()
        self.blip.visual_encoder = vit.VisionTransformer(
            img_size=SIDE, patch_size=8, embed_dim=24, depth=3, num_heads=4
        )
        self.blip.text_encoder = med.BertModel(config=config, add_pooling_layer=False)
        self.blip.vision_proj, self.blip.text_proj = nn.Linear(24, 8), nn.Linear(36, 8)
        self.mlp = package.MLP(36)
        self.mean, self.std = 0.16717362830052426, 1.0333394966054072
        self.device = "cpu"
        self._score_grad = package.ImageReward.score_gard

    def score_grad(self, batch: Any, pixels: Tensor) -> Tensor:
        return self._score_grad(self, batch.input_ids, batch.attention_mask, pixels).squeeze(-1)


@pytest.fixture(scope="module")
def published() -> Published:
    with seeded(0):
        made = Published()
        for parameter in made.parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    return made.eval()


@pytest.fixture
def reward(published: Published) -> ImageReward:
    network = load_network(published.state_dict(), vision=VISION, text=TEXT, source="random")
    return ImageReward(network, bert_tokenizer(), image_input(SIDE))


def tokens(prompts: list[str]) -> Any:
    return bert_tokenizer()(prompts, padding="max_length", truncation=True, max_length=35, return_tensors="pt")


@pytest.mark.golden
@pytest.mark.parametrize(("height", "width"), [(32, 32), (60, 60), (45, 38), (37, 64)], ids=str)
def test_scores_are_those_of_the_published_package(published: Published, reward: ImageReward, height: int, width: int):
    """One picture after the other, prepared by the package itself."""
    pixels = eight_bit_pictures(4, height, width)
    prepare = originals.image_reward()._transform(SIDE)
    with torch.no_grad():
        expected = torch.cat(
            [
                published.score_grad(tokens([prompt]), prepare(picture)[None])
                for picture, prompt in zip(as_pillow(pixels), PROMPTS, strict=True)
            ]
        )
    assert expected.std() > 0.01
    assert (reward.score(pixels, PROMPTS).scores - expected).abs().max() < 1e-5


@pytest.mark.golden
def test_the_gradient_is_that_of_the_published_package(published: Published, reward: ImageReward):
    pixels = eight_bit_pictures(3, 41, 36).requires_grad_(True)
    reward.score(pixels, PROMPTS[:3]).scores.sum().backward()
    theirs = pixels.detach().clone().requires_grad_(True)
    published.score_grad(tokens(PROMPTS[:3]), reward.wanted.tensor(theirs)).sum().backward()
    assert pixels.grad is not None
    assert theirs.grad is not None
    assert theirs.grad.norm() > 1e-3
    assert (pixels.grad - theirs.grad).norm() < 1e-5 * theirs.grad.norm()


@pytest.mark.golden
def test_long_prompts_are_cut_as_published(published: Published, reward: ImageReward):
    pixels, prompt = eight_bit_pictures(1, SIDE, SIDE), "two blue squares and " * 20
    with pytest.warns(UserWarning, match="imagereward reads 35 tokens of a prompt, and 'two blue squares"):
        score = reward.score(pixels, [prompt]).scores
    with torch.no_grad():
        expected = published.score_grad(tokens([prompt]), reward.wanted.exact(pixels))
    assert torch.allclose(score, expected, atol=1e-5)


def test_settings_that_transformers_has_otherwise_matter(published: Published, reward: ImageReward):
    """With its defaults, ε 1e-5 and 8 heads, or a mask that looks one way, the score would be another."""
    pixels = reward.wanted.exact(eight_bit_pictures(1, SIDE, SIDE))
    batch = tokens(PROMPTS[:1])
    with torch.no_grad():
        whole = reward.model(pixels, batch.input_ids, batch.attention_mask)
        patches = reward.model.vision(pixel_values=pixels).last_hidden_state
        causal = reward.model.text(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            encoder_hidden_states=patches,
            is_decoder=True,
        ).last_hidden_state[:, 0]
        one_way = (reward.model.head(causal).squeeze(-1) - image_reward.MEAN) / image_reward.STD
    assert (whole - one_way).abs() > 1e-3
    assert (vision_config().layer_norm_eps, text_config().num_attention_heads) == (1e-6, 12)


def test_it_is_a_frozen_reward(reward: ImageReward):
    assert isinstance(reward, RewardModel)
    assert reward.differentiable
    assert not reward.model.training
    assert not any(parameter.requires_grad for parameter in reward.model.parameters())
    reward.to("cpu")
    assert reward.device == torch.device("cpu")


def test_scores_do_not_depend_on_batch_mates(reward: ImageReward):
    pixels = eight_bit_pictures(4, 33, 33)
    whole = reward.score(pixels, PROMPTS).scores
    few = ImageReward(reward.model, bert_tokenizer(), reward.wanted, micro_batch=3)
    assert torch.allclose(few.score(pixels, PROMPTS).scores, whole, atol=1e-5)
    alone = torch.cat([reward.score(pixels[i : i + 1], PROMPTS[i : i + 1]).scores for i in range(4)])
    assert torch.allclose(alone, whole, atol=1e-5)


def test_a_checkpoint_file_is_loaded_whole(published: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With the small configurations in the place of the published ones."""
    monkeypatch.setattr(image_reward, "vision_config", lambda: VISION)
    monkeypatch.setattr(image_reward, "text_config", lambda: TEXT)
    monkeypatch.setattr(image_reward, "SIDE", SIDE)
    words = tmp_path / "words"
    bert_tokenizer().save_pretrained(words)
    state = published.state_dict()
    torch.save(state, tmp_path / "ImageReward.pt")
    loaded = ImageReward.from_pretrained(tmp_path, tokenizer=str(words))
    pixels = eight_bit_pictures(3, SIDE, SIDE)
    with torch.no_grad():
        expected = published.score_grad(tokens(PROMPTS[:3]), loaded.wanted.exact(pixels))
    assert torch.allclose(loaded.score(pixels, PROMPTS[:3]).scores, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("removed", "added", "message"),
    [
        ("blip.visual_encoder.blocks.1.attn.qkv.bias", None, r"it has no vision\.encoder\.layers\.1\.self_attn\.qkv"),
        ("mlp.layers.7.weight", None, r"it has no head\.7\.weight"),
        (None, "blip.text_decoder.cls.bias", r"than ImageReward: it has unknown blip\.text_decoder\.cls\.bias"),
        (None, "blip.visual_encoder.blocks.9.mlp.fc1.bias", r"it has unknown vision\.encoder\.layers\.9\.mlp\.fc1"),
        (None, "mlp.layers.0.weight", r"in other shapes head\.0\.weight \(1,\) instead of \(1024, 36\)"),
    ],
)
def test_other_checkpoints_are_refused(published: Published, removed: str | None, added: str | None, message: str):
    state = {key: tensor for key, tensor in published.state_dict().items() if key != removed}
    state |= {} if added is None else {added: torch.zeros(1)}
    with pytest.raises(ValueError, match=message):
        load_network(state, vision=VISION, text=TEXT, source="file")


def test_the_full_configuration_is_that_of_the_paper():
    """446.7 million parameters with the two projections that the score does not use."""
    with torch.device("meta"):
        network = image_reward.ImageRewardNetwork(vision_config(), text_config())
    projections = 256 * (1024 + 1) + 256 * (768 + 1)
    assert sum(p.numel() for p in network.parameters()) + projections == pytest.approx(446.7e6, rel=1e-3)


def test_another_network_can_be_taught(reward: ImageReward):
    check_learns(reward, eight_bit_pictures(3, SIDE, SIDE), PROMPTS[:3])
