"""The detector: what it makes of a network's answer, on answers that are made up, and that it reads a saved one."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from difalign.reward_models.geneval_clauses import CLASSES
from difalign.reward_models.mask2former import Mask2FormerDetector, class_names
from tests.reward_models.tiny_mask2former import SIDE, tiny_mask2former

DOG, CAT = CLASSES.index("dog"), CLASSES.index("cat")


class Answering(nn.Module):
    """A network that answers the same whatever it is shown, and remembers what that was."""

    def __init__(self, classes: Tensor, masks: Tensor) -> None:
        super().__init__()
        self.answer = SimpleNamespace(class_queries_logits=classes[None], masks_queries_logits=masks[None])
        self.weight = nn.Parameter(torch.zeros(1))
        self.config = SimpleNamespace(id2label=dict(enumerate(CLASSES)))
        self.shown: list[Tensor] = []

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor) -> Any:
        self.shown.append(pixel_values)
        return self.answer


def query(label: int, logit: float) -> Tensor:
    logits = torch.zeros(81)
    logits[label] = logit
    return logits


def outline(top: int, bottom: int, left: int, right: int, *, logit: float = 20.0, side: int = 16) -> Tensor:
    mask = torch.full((side, side), -20.0)
    mask[top:bottom, left:right] = logit
    return mask


def test_box_lies_where_the_outline_does():
    """A 64 by 64 picture shown at its size: the outline is drawn at a quarter of it."""
    network = Answering(torch.stack([query(DOG, 20.0)]), outline(4, 8, 2, 12)[None])
    (found,) = Mask2FormerDetector(network, least=0.3, shorter=64, longer=96)(torch.rand(3, 64, 64))
    assert found.label == "dog"
    assert found.box == pytest.approx((8, 16, 48, 32), abs=2)  # interpolation rounds the corners
    assert found.score == pytest.approx(1.0, abs=0.1)
    assert found.mask.shape == (64, 64)
    assert found.mask[18:30, 10:46].all()
    assert not found.mask[:14].any()


def test_filling_and_size_are_undone():
    """A 30 by 60 picture is shown as 48 by 96, filled up to 64 by 96: a quarter of the height holds nothing."""
    network = Answering(torch.stack([query(CAT, 20.0)]), outline(0, 12, 8, 16)[None])
    (found,) = Mask2FormerDetector(network, least=0.3, shorter=64, longer=96)(torch.rand(3, 30, 60))
    assert network.shown[0].shape == (1, 3, 64, 96)
    assert (network.shown[0][..., 48:, :] == 0).all()
    assert found.box == pytest.approx((30, 0, 60, 30), abs=2)  # right half, all of the height


def test_pictures_are_normalised():
    network = Answering(torch.stack([query(CAT, 20.0)]), outline(0, 4, 0, 4)[None])
    Mask2FormerDetector(network, shorter=64, longer=96)(torch.full((3, 32, 32), 0.5))
    half = round(0.5 * 255) / 255
    expected = [(half - mean) / std for mean, std in zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)]
    assert network.shown[0][0, :, 5, 5].tolist() == pytest.approx(expected, abs=1e-5)


def test_score_is_that_of_class_times_that_of_outline():
    unsure = torch.stack([query(DOG, 6.0), query(CAT, 20.0)])
    masks = torch.stack([torch.full((16, 16), 0.5), torch.full((16, 16), 20.0)])
    found = Mask2FormerDetector(Answering(unsure, masks), least=0.3, shorter=64, longer=96)(torch.rand(3, 64, 64))
    assert [thing.label for thing in found] == ["cat", "dog"]  # the surest first
    expected = float(query(DOG, 6.0).softmax(-1)[DOG] * torch.tensor(0.5).sigmoid())
    assert found[1].score == pytest.approx(expected, abs=1e-5)


def test_what_is_unsure_or_empty_is_left_out():
    classes = torch.stack([query(DOG, 20.0), query(CAT, 2.0), query(80, 20.0), query(DOG, 20.0)])
    masks = torch.stack([outline(0, 16, 0, 16)] * 3 + [outline(0, 0, 0, 0)])
    found = Mask2FormerDetector(Answering(classes, masks), least=0.3, shorter=64, longer=96)(torch.rand(3, 64, 64))
    assert [thing.label for thing in found] == ["dog"]


def test_one_outline_may_be_of_two_classes():
    logits = torch.zeros(81)
    logits[[DOG, CAT]] = 20.0
    network = Answering(logits[None], outline(0, 16, 0, 16)[None])
    found = Mask2FormerDetector(network, least=0.3, shorter=64, longer=96)(torch.rand(3, 64, 64))
    assert {thing.label for thing in found} == {"dog", "cat"}


def test_saved_network_finds_the_same(tmp_path: Path):
    network, picture = tiny_mask2former(), torch.rand(3, 40, 60, generator=torch.Generator().manual_seed(0))
    network.save_pretrained(tmp_path)
    loaded = Mask2FormerDetector.from_pretrained(tmp_path, least=0.0, shorter=SIDE, longer=96)
    ours, theirs = Mask2FormerDetector(network, least=0.0, shorter=SIDE, longer=96)(picture), loaded(picture)
    assert [(one.label, one.box, one.score) for one in ours] == [(one.label, one.box, one.score) for one in theirs]
    assert ours
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())


def test_another_model_is_refused(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(ValueError, match="holds a model of type 'clip', not a Mask2Former"):
        Mask2FormerDetector.from_pretrained(tmp_path)


def test_words_of_published_configurations_are_understood():
    said = dict(enumerate(CLASSES))
    assert class_names(said) == CLASSES
    assert class_names({index: f"LABEL_{index}" for index in range(80)}) == CLASSES
    said[3], said[57], said[64] = "motorbike", "sofa", "mouse"
    assert class_names(said) == CLASSES


def test_other_classes_are_refused():
    with pytest.raises(ValueError, match=r"knows 3 classes, which are not COCO's eighty \(airplane"):
        class_names({0: "wall", 1: "building", 2: "sky"})
    with pytest.raises(ValueError, match="knows 80 classes"):
        class_names(dict(enumerate(CLASSES)) | {0: "wall"})
