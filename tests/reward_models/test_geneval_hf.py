"""GenEval's rules over a detector and a CLIP: with made-up objects, and with tiny networks from end to end."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import CLIPImageProcessor

from difalign.core.protocols import RewardModel
from difalign.reward_models.clip import ClipReward
from difalign.reward_models.geneval import FoundObject, KeepingRule
from difalign.reward_models.geneval_clauses import CLASSES, COLOURS
from difalign.reward_models.geneval_hf import ClipColours, GenEvalReward, cut_out
from difalign.reward_models.mask2former import Mask2FormerDetector
from tests.reward_models.tiny_mask2former import SIDE, tiny_mask2former
from tests.tiny_models import clip_model, clip_tokenizer

WORDS = ("a", "photo", "of", "-", "colored", "object", "dog", *COLOURS)  # the tiny CLIP reads twelve tokens
RED_DOG = {"tag": "colors", "include": [{"class": "dog", "count": 1, "color": "red"}]}
TWO_DOGS = {"tag": "counting", "include": [{"class": "dog", "count": 2}], "exclude": [{"class": "dog", "count": 3}]}


def bright_dogs(picture: Tensor) -> list[FoundObject]:
    """As many dogs as the first pixel says, in tenths."""
    count = round(float(picture[0, 0, 0]) * 10)
    return [FoundObject("dog", (4.0 * i, 0, 4.0 * i + 3, 3), 0.95) for i in range(count)]


def always_red(picture: Tensor, label: str, found: Sequence[FoundObject]) -> list[str]:
    return ["red"] * len(found)


def dogs(*counts: int) -> Tensor:
    return torch.tensor(counts, dtype=torch.float32).view(-1, 1, 1, 1).expand(-1, 3, 16, 16) / 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIP and a tiny detector, saved."""
    path, tokenizer = tmp_path_factory.mktemp("geneval"), clip_tokenizer(WORDS)
    side = {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}}
    for part in (clip_model(tokenizer, seed=1), tokenizer, CLIPImageProcessor(**side)):
        part.save_pretrained(path / "clip")
    tiny_mask2former().save_pretrained(path / "detector")
    return path


@pytest.fixture(scope="module")
def clip(folder: Path) -> ClipReward:
    return ClipReward.from_pretrained(folder / "clip")


def test_is_a_reward():
    assert isinstance(GenEvalReward(bright_dogs, always_red), RewardModel)


def test_each_picture_is_judged_by_its_own_task():
    output = GenEvalReward(bright_dogs, always_red).score(
        dogs(1, 1, 2, 3), ["a", "b", "c", "d"], metadata=[RED_DOG, TWO_DOGS, TWO_DOGS, RED_DOG]
    )
    assert output.scores.tolist() == [1.0, 0.5, 1.0, -0.5]  # (1 - 2 + 0) / 2
    assert output.components["strict"].tolist() == [1.0, 0.0, 1.0, 0.0]
    assert output.components["official"].tolist() == [1.0, 0.0, 1.0, 1.0]
    assert output.scores.dtype == torch.float32


@pytest.mark.parametrize(("signal", "score"), [("partial", -0.5), ("strict", 0.0), ("official", 1.0)])
def test_signal_says_which_verdict_is_the_score(signal: str, score: float):
    reward = GenEvalReward(bright_dogs, always_red, signal=signal)
    assert float(reward.score(dogs(3), [""], metadata=[RED_DOG]).scores) == score


def test_rules_are_handed_on():
    strict = GenEvalReward(bright_dogs, always_red, keeping=KeepingRule(threshold=0.96))
    assert float(strict.score(dogs(1), [""], metadata=[RED_DOG]).scores) == 0.0
    one = GenEvalReward(bright_dogs, always_red, keeping=KeepingRule(max_objects=1))
    assert float(one.score(dogs(3), [""], metadata=[RED_DOG]).scores) == 1.0


def test_missing_metadata_and_other_media_are_refused():
    reward = GenEvalReward(bright_dogs, always_red)
    with pytest.raises(ValueError, match="'a dog': tag = None"):
        reward.score(dogs(1), ["a dog"])
    with pytest.raises(ValueError, match="2 prompts but metadata of 1"):
        reward.score(dogs(1, 1), ["a dog", "b"], metadata=[RED_DOG])
    with pytest.raises(ValueError, match="geneval-hf reads RGB images"):
        reward.score(torch.rand(1, 1, 8, 8), ["a dog"], metadata=[RED_DOG])
    with pytest.raises(ValueError, match="geneval-hf has no gradient"):
        reward.score(torch.rand(1, 3, 8, 8).requires_grad_(), ["a dog"], metadata=[RED_DOG])
    with pytest.raises(ValueError, match="signal = 'lenient': use one of: partial, strict, official"):
        GenEvalReward(bright_dogs, always_red, signal="lenient")
    with pytest.raises(ValueError, match="compat = 'mmdet': use one of: none, flow_grpo"):
        GenEvalReward(bright_dogs, always_red, compat="mmdet")


def test_object_is_cut_out_on_grey():
    picture = torch.rand(3, 10, 12)
    mask = torch.zeros(10, 12, dtype=torch.bool)
    mask[2:4, 3:6] = True
    shown = cut_out(picture, FoundObject("dog", (3, 1, 7, 4), 1.0, mask))
    assert shown.shape == (3, 3, 4)
    assert torch.equal(shown[:, 1:, :3], picture[:, 2:4, 3:6])
    assert torch.equal(shown[:, 0], torch.full((3, 4), 0x99 / 255))
    assert torch.equal(cut_out(picture, FoundObject("dog", (3, 1, 7, 4), 1.0)), picture[:, 1:4, 3:7])


def test_object_of_no_extent_is_still_a_pixel():
    assert cut_out(torch.rand(3, 10, 12), FoundObject("dog", (12, 10, 12, 10), 1.0)).shape == (3, 1, 1)


def test_colour_is_the_nearest_sentence(clip: ClipReward):
    """By hand: ten colours, three sentences each, the mean of unit vectors."""
    picture, thing = torch.rand(3, 32, 32), FoundObject("dog", (4, 4, 30, 28), 1.0)
    image = clip.embed_images(cut_out(picture, thing)[None])[0]
    nearness: list[float] = []
    for colour in COLOURS:
        sentences = [
            f"a photo of a {colour} dog",
            f"a photo of a {colour}-colored dog",
            f"a photo of a {colour} object",
        ]
        mean = clip.embed_texts(sentences).mean(dim=0)
        nearness.append(float(image @ mean / mean.norm()))
    named = ClipColours(clip)(picture, "dog", [thing, thing])
    assert named == [COLOURS[max(range(10), key=nearness.__getitem__)]] * 2


def test_tiny_networks_from_end_to_end(clip: ClipReward):
    detector = Mask2FormerDetector(tiny_mask2former(), least=0.0, shorter=SIDE, longer=96)
    reward = GenEvalReward(detector, ClipColours(clip), keeping=KeepingRule(threshold=0.0, counting_threshold=0.0))
    media = torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    label = detector(media[0])[0].label
    count = sum(thing.label == label for thing in detector(media[0]))
    task = {"tag": "colors", "include": [{"class": label, "count": min(count, 16), "color": "red"}]}
    both = reward.score(media, ["", ""], metadata=[task, task])
    assert 0.5 <= float(both.scores[0]) <= 1.0  # the count is right, and the colour is CLIP's to say
    alone = [reward.score(one[None], [""], metadata=[task]) for one in media]
    assert both.scores.tolist() == [float(one.scores) for one in alone]


def test_folders_are_loaded(folder: Path):
    reward = GenEvalReward.from_pretrained(
        folder / "detector", colour_model=str(folder / "clip"), shorter=SIDE, longer=96, threshold=0.0
    )
    task = {"tag": "single_object", "include": [{"class": CLASSES[0], "count": 1}]}
    assert reward.score(torch.rand(1, 3, 40, 40), [""], metadata=[task]).scores.isfinite().all()


@pytest.mark.slow
def test_torchvision_is_not_needed():
    code = (
        "import sys; sys.modules['torchvision'] = None\n"
        "import torch\n"
        "from tests.reward_models.tiny_mask2former import tiny_mask2former\n"
        "from difalign.reward_models.mask2former import Mask2FormerDetector\n"
        "assert Mask2FormerDetector(tiny_mask2former(), least=0.0, shorter=64, longer=96)(torch.rand(3, 40, 40))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
