"""HPSv2 and ImageReward at their published sizes, random weights in the published code and in ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch

from difalign.reward_models.hpsv2 import HPSv2Reward, load_open_clip
from difalign.reward_models.image_reward import SIDE, ImageReward, image_input, load_network, text_config, vision_config
from difalign.reward_models.preprocessing import PaddedInput
from tests.reward_models import originals
from tests.reward_models.bert_words import bert_tokenizer
from tests.reward_models.pictures import as_pillow, eight_bit_pictures
from tests.tiny_models import seeded

pytestmark = [pytest.mark.slow, pytest.mark.golden]
PROMPTS = ["a red circle", "two blue squares above a green cross"]
PIXELS = eight_bit_pictures(2, 320, 250)


def test_hpsv2() -> None:
    """986 million parameters; ours are the same tensors, not copies."""
    config: Any = open_clip.get_model_config("ViT-H-14")
    module = originals.hpsv2("model")
    with seeded(0):
        original = module.CLIP(
            config["embed_dim"],
            module.CLIPVisionCfg(**config["vision_cfg"]),
            module.CLIPTextCfg(**config["text_cfg"]),
            output_dict=True,
        ).eval()
    model = load_open_clip(config, original.state_dict(), source="random")
    reward = HPSv2Reward(model, open_clip.get_tokenizer("ViT-H-14"), PaddedInput(224))
    prepare = originals.hpsv2("transform").image_transform(224, is_train=False, resize_longest_max=True)
    with torch.no_grad():
        pictures = torch.stack([prepare(picture) for picture in as_pillow(PIXELS)])
        outputs = original(pictures, originals.hpsv2("tokenizer").tokenize(PROMPTS))
        expected = (outputs["image_features"] * outputs["text_features"]).sum(dim=1)
        scores = reward.score(PIXELS, PROMPTS).scores
    assert expected.std() > 1e-5
    assert (scores - expected).abs().max() < 1e-6


def test_image_reward(tmp_path: Path) -> None:
    """447 million parameters, with the gradient to the picture."""
    wanted = text_config()
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    config = {name: getattr(wanted, name) for name in (*names, "layer_norm_eps", "max_position_embeddings")}
    config |= {"add_cross_attention": True, "attn_implementation": "eager"}
    (tmp_path / "med_config.json").write_text(json.dumps(config))
    package = originals.image_reward()
    with seeded(0):
        original = package.ImageReward(str(tmp_path / "med_config.json")).eval()
        for layer in original.mlp.layers:  # which begins so near zero that every picture gets the same score
            if isinstance(layer, torch.nn.Linear):
                layer.reset_parameters()
    network = load_network(original.state_dict(), vision=vision_config(), text=wanted, source="random")
    reward = ImageReward(network, bert_tokenizer(), image_input(SIDE))
    batch = bert_tokenizer()(PROMPTS, padding="max_length", truncation=True, max_length=35, return_tensors="pt")
    theirs = torch.stack([original.preprocess(picture) for picture in as_pillow(PIXELS)]).requires_grad_(True)
    expected = original.score_gard(batch.input_ids, batch.attention_mask, theirs).squeeze(-1)
    expected.sum().backward()
    with torch.no_grad():
        scores = reward.score(PIXELS, PROMPTS).scores
    assert expected.std() > 1e-4
    assert (scores - expected).abs().max() < 1e-5
    ours = theirs.detach().clone().requires_grad_(True)
    network(ours, batch.input_ids, batch.attention_mask).sum().backward()
    assert theirs.grad is not None
    assert ours.grad is not None
    assert (ours.grad - theirs.grad).norm() < 1e-5 * theirs.grad.norm()
