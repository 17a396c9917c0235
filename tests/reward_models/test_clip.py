"""The CLIP reward: equal to transformers, differentiable, indifferent to batches, clear about what it cannot load."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

from difalign.core.protocols import RewardModel
from difalign.reward_models.clip import ClipReward
from tests.reward_models.pictures import as_pillow, eight_bit_pictures
from tests.teachers import check_learns
from tests.tiny_models import clip_model, clip_text_encoder, clip_tokenizer

PROMPTS = ["a red circle", "two blue squares", "a green cross above a red square", "a red circle"]


def image_processor(side: int = 24) -> CLIPImageProcessor:
    return CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved CLIP model with random weights, the logits' scale away from its default."""
    path = tmp_path_factory.mktemp("clip")
    tokenizer = clip_tokenizer()
    model = clip_model(tokenizer, seed=3)
    model.logit_scale.data.fill_(3.2)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    image_processor().save_pretrained(path)
    return path


@pytest.fixture
def reward(folder: Path) -> ClipReward:
    return ClipReward.from_pretrained(folder)


def test_it_is_a_reward(reward: ClipReward):
    assert isinstance(reward, RewardModel)
    assert reward.differentiable
    assert not any(parameter.requires_grad for parameter in reward.model.parameters())


def test_scores_equal_transformers(folder: Path, reward: ClipReward):
    """The pictures have the model's own size, so that nothing but the two networks is compared."""
    pixels = eight_bit_pictures(4, 24, 24)
    processor = CLIPProcessor(image_processor=image_processor(), tokenizer=CLIPTokenizer.from_pretrained(folder))
    inputs = processor(text=PROMPTS, images=as_pillow(pixels), return_tensors="pt", padding=True)
    reference = CLIPModel.from_pretrained(folder)
    with torch.no_grad():
        logits = reference(**inputs).logits_per_image.diagonal()
        scale = float(reference.logit_scale.exp())
    assert torch.allclose(reward.score(pixels, PROMPTS).scores, logits / scale, atol=1e-6)
    by_logit = ClipReward.from_pretrained(folder, scale="logit").score(pixels, PROMPTS).scores
    assert torch.allclose(by_logit, logits, rtol=1e-5, atol=1e-5)
    by_clipscore = ClipReward.from_pretrained(folder, scale="clipscore").score(pixels, PROMPTS).scores
    assert torch.allclose(by_clipscore, 2.5 * (logits / scale).clamp(min=0), atol=1e-5)


def test_gradient_is_that_of_finite_differences(folder: Path):
    """Along random directions, through resizing as well; the network in float64, and no pixel rounded to 8 bits."""
    reward = ClipReward.from_pretrained(folder, preprocess="tensor")
    reward.model.double()
    pixels = 0.2 + 0.6 * eight_bit_pictures(2, 31, 40).double()  # away from 0 and 1, where resizing is cut off
    pixels.requires_grad_(True)
    reward.score(pixels, PROMPTS[:2]).scores.sum().backward()
    assert pixels.grad is not None
    source = torch.Generator().manual_seed(1)
    for _ in range(3):
        direction = torch.randn(pixels.shape, generator=source, dtype=torch.float64)
        step = 1e-3
        with torch.no_grad():
            ahead = reward.score(pixels + step * direction, PROMPTS[:2]).scores.sum()
            behind = reward.score(pixels - step * direction, PROMPTS[:2]).scores.sum()
        slope = float((ahead - behind) / (2 * step))
        assert slope == pytest.approx(float((pixels.grad * direction).sum()), rel=2e-2, abs=1e-4)


def test_scores_do_not_depend_on_batches(folder: Path, reward: ClipReward):
    pixels = eight_bit_pictures(4, 30, 30)
    whole = reward.score(pixels, PROMPTS).scores
    small = ClipReward.from_pretrained(folder, micro_batch=3).score(pixels, PROMPTS).scores
    alone = torch.cat([reward.score(pixels[i : i + 1], PROMPTS[i : i + 1]).scores for i in range(4)])
    assert torch.allclose(whole, small, atol=1e-6)
    assert torch.allclose(whole, alone, atol=1e-6)


def test_each_distinct_prompt_is_read_once(reward: ClipReward):
    read: list[int] = []
    reward.model.text_model.register_forward_hook(lambda module, inputs, output: read.append(len(output.pooler_output)))
    reward.score(eight_bit_pictures(4, 24, 24), PROMPTS)
    assert read == [1, 1, 1]
    reward.score(eight_bit_pictures(2, 24, 24, seed=1), [PROMPTS[1], "a blue circle"])
    assert read == [1] * 4
    reward.to("cpu")  # as when the weights wait elsewhere between two scorings
    reward.score(eight_bit_pictures(1, 24, 24), PROMPTS[:1])
    assert read == [1] * 4


def test_prompts_longer_than_the_model_reads_are_cut_with_one_warning(reward: ClipReward):
    pictures = eight_bit_pictures(1, 24, 24).expand(2, -1, -1, -1)
    with pytest.warns(UserWarning, match="clip reads 12 tokens of a prompt, and 'a red circle") as said:
        scores = reward.score(pictures, ["a red circle and " * 20, "a red circle and " * 30]).scores
    assert len(said) == 1
    assert scores[0] == pytest.approx(float(scores[1]), abs=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_computes_and_scores_in_float32(folder: Path, reward: ClipReward, dtype: str):
    half = ClipReward.from_pretrained(folder, dtype=dtype)
    assert half.model.dtype == getattr(torch, dtype)
    pixels = eight_bit_pictures(4, 24, 24)
    scores = half.score(pixels, PROMPTS).scores
    assert scores.dtype == torch.float32
    assert torch.allclose(scores, reward.score(pixels, PROMPTS).scores, atol=0.03)


def test_half_stored_weights_compute_in_float32_unless_told(folder: Path, tmp_path: Path):
    CLIPModel.from_pretrained(folder).half().save_pretrained(tmp_path)
    CLIPTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    image_processor().save_pretrained(tmp_path)
    assert ClipReward.from_pretrained(tmp_path).model.dtype == torch.float32


def test_tokenizer_and_processor_may_lie_elsewhere(folder: Path, reward: ClipReward, tmp_path: Path):
    CLIPModel.from_pretrained(folder).save_pretrained(tmp_path / "weights")
    apart = ClipReward.from_pretrained(tmp_path / "weights", processor=str(folder))
    pixels = eight_bit_pictures(4, 30, 30)
    assert torch.equal(apart.score(pixels, PROMPTS).scores, reward.score(pixels, PROMPTS).scores)


@pytest.mark.parametrize(
    ("media", "prompts", "message"),
    [
        (torch.zeros(2, 3, 24, 24), ["a"], "2 images but 1 prompts"),
        (torch.zeros(1, 4, 3, 24, 24), ["a"], r"\[N, 3, H, W\]"),
        (torch.zeros(1, 1, 24, 24), ["a"], r"\[N, 3, H, W\]"),
    ],
    ids=["numbers", "video", "grey"],
)
def test_other_media_are_refused(reward: ClipReward, media: Tensor, prompts: list[str], message: str):
    with pytest.raises(ValueError, match=message):
        reward.score(media, prompts)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"scale": "percent"}, "percent"), ({"micro_batch": 0}, "micro_batch = 0"), ({"dtype": "int8"}, "int8")],
    ids=["scale", "micro_batch", "dtype"],
)
def test_bad_options_are_refused(folder: Path, options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        ClipReward.from_pretrained(folder, **options)


def test_a_missing_folder_is_named(tmp_path: Path):
    with pytest.raises(ValueError, match=r"nowhere: there is no such folder"):
        ClipReward.from_pretrained(tmp_path / "nowhere")


def test_other_folders_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"no readable config.json"):
        ClipReward.from_pretrained(tmp_path)
    clip_text_encoder(clip_tokenizer(), seed=0).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="'clip_text_model', not a CLIPModel"):
        ClipReward.from_pretrained(tmp_path)


def test_another_network_can_be_taught(reward: ClipReward):
    check_learns(reward, eight_bit_pictures(4, 24, 24), PROMPTS)
