"""PickScore, CLIPScore and the aesthetic predictor against what their authors' examples do with transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from difalign.core.protocols import RewardModel
from difalign.reward_models.aesthetic import AestheticReward
from difalign.reward_models.clip import ClipReward
from tests.reward_models.originals import image_reward
from tests.reward_models.pictures import as_pillow, eight_bit_pictures
from tests.tiny_models import clip_model, clip_tokenizer, seeded

PROMPTS = [
    "a red circle",
    "two blue squares of a green cross",
    "",
    "A Red  Circle, \u201cbelow\u201d a caf\u00e9 &amp; more"[:30],
]
SIDE, WIDTH = 24, 12
SIZES = [(24, 24), (61, 40), (33, 52)]
PICTURES = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip")
    tokenizer = clip_tokenizer()
    model = clip_model(tokenizer, seed=5)
    model.logit_scale.data.fill_(4.6)  # about 100, as in the published models
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    PICTURES.save_pretrained(path)
    return path


def pooled(output: object) -> Tensor:
    """Projected features, which transformers wraps from version 5 on."""
    return output if isinstance(output, Tensor) else output.pooler_output


def pickscore(folder: Path, pixels: Tensor, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """The example of PickScore's model card, one picture after the other: temperature and cosine."""
    model, tokenizer = CLIPModel.from_pretrained(folder).eval(), CLIPTokenizer.from_pretrained(folder)
    cosines = []
    with torch.no_grad():
        for picture, prompt in zip(as_pillow(pixels), prompts, strict=True):
            image = PICTURES(picture, return_tensors="pt")
            text = tokenizer([prompt], padding=True, truncation=True, max_length=12, return_tensors="pt")
            image_embedding = pooled(model.get_image_features(**image))
            text_embedding = pooled(model.get_text_features(**text))
            image_embedding = image_embedding / image_embedding.norm(dim=-1, keepdim=True)
            text_embedding = text_embedding / text_embedding.norm(dim=-1, keepdim=True)
            cosines.append((text_embedding @ image_embedding.T)[0, 0])
        return model.logit_scale.exp(), torch.stack(cosines)


@pytest.mark.golden
@pytest.mark.parametrize(("height", "width"), SIZES, ids=str)
@pytest.mark.filterwarnings("ignore:clip reads 12 tokens")
def test_scores_are_those_of_the_published_example(folder: Path, height: int, width: int):
    pixels = eight_bit_pictures(4, height, width)
    temperature, cosine = pickscore(folder, pixels, PROMPTS)
    assert cosine.std() > 1e-3
    ours = {scale: ClipReward.from_pretrained(folder, scale=scale) for scale in ("cosine", "logit", "clipscore")}
    scores = {scale: reward.score(pixels, PROMPTS).scores for scale, reward in ours.items()}
    assert (scores["cosine"] - cosine).abs().max() < 1e-6
    assert (scores["logit"] / temperature - cosine).abs().max() < 1e-6
    assert (scores["clipscore"] - 2.5 * cosine.clamp(min=0)).abs().max() < 2.5e-6


@pytest.fixture(scope="module")
def head() -> nn.Module:
    """The head in the published code, with random weights away from their near-zero start."""
    with seeded(1):
        made = image_reward("models.AestheticScore").MLP(WIDTH)
        for parameter in made.parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    return made.eval()


@pytest.fixture
def aesthetic(folder: Path, head: nn.Module, tmp_path: Path) -> AestheticReward:
    torch.save(head.state_dict(), tmp_path / "aesthetic-model.pth")
    return AestheticReward.from_pretrained(tmp_path, encoder=str(folder))


@pytest.mark.golden
@pytest.mark.parametrize(("height", "width"), SIZES, ids=str)
def test_the_aesthetic_score_is_that_of_the_published_code(
    folder: Path, head: nn.Module, aesthetic: AestheticReward, height: int, width: int
):
    pixels = eight_bit_pictures(3, height, width)
    model = CLIPModel.from_pretrained(folder).eval()
    with torch.no_grad():
        features = pooled(model.get_image_features(**PICTURES(as_pillow(pixels), return_tensors="pt")))
        unit = features / features.norm(dim=-1, keepdim=True)
        expected, unnormalised = head(unit).squeeze(-1), head(features).squeeze(-1)
    scores = aesthetic.score(pixels, PROMPTS[:3]).scores
    assert (scores - expected).abs().max() < 1e-6
    assert (scores - unnormalised).abs().max() > 1e-2  # what leaving the normalisation out would give


def test_the_aesthetic_score_is_a_frozen_reward_that_reads_no_prompt(aesthetic: AestheticReward):
    assert isinstance(aesthetic, RewardModel)
    assert aesthetic.differentiable
    assert not any(p.requires_grad for p in [*aesthetic.head.parameters(), *aesthetic.encoder.model.parameters()])
    pixels = eight_bit_pictures(2, 30, 30).requires_grad_(True)
    scores = aesthetic.score(pixels, ["a", "b"]).scores
    scores.sum().backward()
    assert pixels.grad is not None
    assert pixels.grad.norm() > 0
    aesthetic.to("cpu")
    again = aesthetic.score(pixels, ["c", "d"]).scores
    assert torch.equal(again, scores)
    assert torch.allclose(aesthetic.score(pixels[:1], ["a"]).scores, scores[:1], atol=1e-5)
    with pytest.raises(ValueError, match="2 images but 1 prompts"):
        aesthetic.score(pixels, ["a"])


def test_another_head_is_refused(folder: Path, tmp_path: Path):
    torch.save({"layers.0.weight": torch.zeros(1024, WIDTH)}, tmp_path / "aesthetic-model.pth")
    with pytest.raises(
        ValueError, match=r"aesthetic-model\.pth: is a checkpoint of another model, .* it has no 0\.bias"
    ):
        AestheticReward.from_pretrained(tmp_path, encoder=str(folder))
