"""HPSv2 against the published package: the same random weights in both, and every way of handing in the wrong file."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch

from difalign.core.protocols import RewardModel
from difalign.reward_models.hpsv2 import HPSv2Reward, load_open_clip
from difalign.reward_models.preprocessing import PaddedInput
from tests.reward_models.originals import hpsv2
from tests.reward_models.pictures import as_pillow, eight_bit_pictures
from tests.teachers import check_learns
from tests.tiny_models import seeded

SIDE = 28
# ViT-H/14 in small: the same parts, GELU and not its quick form, heads of an odd width.
CONFIG: dict[str, Any] = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": SIDE, "layers": 2, "width": 20, "head_width": 10, "patch_size": 14},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}
PROMPTS = [
    "a red circle",
    "A woman\u2019s \u201cportrait\u201d &amp; a caf\u00e9, oil on canvas",
    "two blue squares",
    "a red circle",
]
LONG = "a very long story about a red circle and a blue square " * 12


@pytest.fixture(scope="module")
def original() -> Any:
    """The published class with random weights."""
    model = hpsv2("model")
    with seeded(0):
        made = model.CLIP(
            CONFIG["embed_dim"],
            model.CLIPVisionCfg(**CONFIG["vision_cfg"]),
            model.CLIPTextCfg(**CONFIG["text_cfg"]),
            output_dict=True,
        )
        for parameter in made.parameters():  # biases are not zero and gains not one
            parameter.data.add_(0.05 * torch.randn_like(parameter))
    return made.eval()


@pytest.fixture
def reward(original: Any) -> HPSv2Reward:
    model = load_open_clip(CONFIG, original.state_dict(), source="random")
    return HPSv2Reward(model, open_clip.get_tokenizer("ViT-H-14"), PaddedInput(SIDE))


def published(original: Any, pixels: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    """What hpsv2.img_score.score does to one picture after the other, without autocast."""
    prepare = hpsv2("transform").image_transform(SIDE, is_train=False, mean=None, std=None, resize_longest_max=True)
    tokenize = hpsv2("tokenizer").tokenize
    scores = []
    with torch.no_grad():
        for picture, prompt in zip(as_pillow(pixels), prompts, strict=True):
            outputs = original(prepare(picture)[None], tokenize([prompt]))
            scores.append((outputs["image_features"] @ outputs["text_features"].T).diagonal())
    return torch.cat(scores)


@pytest.mark.golden
@pytest.mark.parametrize(("height", "width"), [(28, 28), (60, 60), (45, 31), (20, 64)], ids=str)
def test_scores_are_those_of_the_published_package(original: Any, reward: HPSv2Reward, height: int, width: int):
    pixels = eight_bit_pictures(4, height, width)
    expected = published(original, pixels, PROMPTS)
    assert expected.std() > 1e-3  # random weights tell the pictures apart
    assert (reward.score(pixels, PROMPTS).scores - expected).abs().max() < 1e-6


@pytest.mark.golden
def test_long_prompts_are_cut_as_published(original: Any, reward: HPSv2Reward):
    pixels = eight_bit_pictures(1, 40, 40)
    with pytest.warns(UserWarning, match="hpsv2 reads 77 tokens of a prompt"):
        score = reward.score(pixels, [LONG]).scores
    assert (score - published(original, pixels, [LONG])).abs().max() < 1e-6


@pytest.mark.golden
def test_the_gradient_is_that_of_the_published_package(original: Any, reward: HPSv2Reward):
    """In the mode that has one; the original can be differentiated after its own preprocessing."""
    pixels = eight_bit_pictures(2, 41, 33).requires_grad_(True)
    reward.score(pixels, PROMPTS[:2]).scores.sum().backward()
    theirs = pixels.detach().clone().requires_grad_(True)
    prepared = reward.wanted.tensor(theirs)
    outputs = original(prepared, hpsv2("tokenizer").tokenize(PROMPTS[:2]))
    (outputs["image_features"] * outputs["text_features"]).sum().backward()
    assert pixels.grad is not None
    assert theirs.grad is not None
    assert theirs.grad.norm() > 0.01
    assert (pixels.grad - theirs.grad).norm() < 1e-5 * theirs.grad.norm()


def test_it_is_a_frozen_reward(reward: HPSv2Reward):
    assert isinstance(reward, RewardModel)
    assert reward.differentiable
    assert not reward.model.training
    assert not any(parameter.requires_grad for parameter in reward.model.parameters())
    with torch.no_grad():
        assert reward.score(eight_bit_pictures(1, 30, 30), PROMPTS[:1]).scores.dtype == torch.float32


def test_scores_do_not_depend_on_batch_mates(reward: HPSv2Reward):
    pixels = eight_bit_pictures(4, 30, 30)
    whole = reward.score(pixels, PROMPTS).scores
    few = HPSv2Reward(reward.model, reward.tokenizer, reward.wanted, micro_batch=3)
    assert torch.allclose(few.score(pixels, PROMPTS).scores, whole, atol=1e-6)
    alone = torch.cat([reward.score(pixels[i : i + 1], PROMPTS[i : i + 1]).scores for i in range(4)])
    assert torch.allclose(alone, whole, atol=1e-6)


def test_each_prompt_is_read_once(reward: HPSv2Reward, monkeypatch: pytest.MonkeyPatch):
    read: list[int] = []
    encode = reward.model.encode_text
    monkeypatch.setattr(
        reward.model, "encode_text", lambda text, normalize: read.append(len(text)) or encode(text, normalize)
    )
    pixels = eight_bit_pictures(4, 30, 30)
    reward.score(pixels, PROMPTS)
    reward.score(pixels, PROMPTS)
    assert read == [1, 1, 1]
    reward.to("cpu")
    reward.score(pixels, PROMPTS)
    assert read == [1, 1, 1]


def test_a_checkpoint_file_is_loaded_whole(original: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With the small configuration in the place of ViT-H/14's."""
    monkeypatch.setattr("open_clip.get_model_config", lambda name: copy.deepcopy(CONFIG))
    file = "HPS_v2_compressed.pt"
    torch.save({"epoch": 1, "name": "x", "state_dict": original.state_dict()}, tmp_path / file)
    pixels = eight_bit_pictures(4, 30, 40)
    loaded = HPSv2Reward.from_pretrained(tmp_path)
    assert (loaded.score(pixels, PROMPTS).scores - published(original, pixels, PROMPTS)).abs().max() < 1e-6
    half = HPSv2Reward.from_pretrained(tmp_path, dtype="bfloat16")
    assert (half.score(pixels, PROMPTS).scores - loaded.score(pixels, PROMPTS).scores).abs().max() < 0.03
    state = original.state_dict()
    del state["visual.proj"]
    torch.save({"state_dict": {**state, "head.weight": torch.zeros(1)}}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"other\.pt: .* it has no visual\.proj; it has unknown head\.weight"):
        HPSv2Reward.from_pretrained(tmp_path, file="other.pt")
    torch.save(state, tmp_path / "flat.pt")
    with pytest.raises(ValueError, match=r"no entry 'state_dict', so it is a checkpoint of another model"):
        HPSv2Reward.from_pretrained(tmp_path, file="flat.pt")


def test_the_full_configuration_is_that_of_the_paper():
    """ViT-H/14 at 224 pixels, 686 tensors, built without memory; strict loading refuses the small one."""
    config: Any = open_clip.get_model_config("ViT-H-14")
    with torch.device("meta"):
        model = open_clip.CLIP(**config)
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(986.1e6, rel=1e-3)
    assert len(model.state_dict()) == 686
    with pytest.raises(ValueError, match="in other shapes"):
        load_open_clip(config, {key: torch.zeros(1) for key in model.state_dict()}, source="file")


def test_another_network_can_be_taught(reward: HPSv2Reward):
    check_learns(reward, eight_bit_pictures(4, SIDE, SIDE), PROMPTS)
