"""The cards of the CLIP and BLIP family fit what they name, and their constants are those that peers use."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from difalign.build.cards import Found, RewardCard, list_rewards, load_reward_card
from difalign.build.targets import check_options, resolve_target
from difalign.reward_models.image_reward import MEAN, STD

FAMILY = {
    "aesthetic",
    "blip-itm",
    "clip-diversity",
    "clipscore",
    "clipscore-vit-h-14",
    "dino-diversity",
    "hpsv2",
    "hpsv2-1",
    "imagereward",
    "pickscore",
    "tiny-clip",
}


def family() -> list[Found[RewardCard]]:
    return [found for found in list_rewards() if found.card.name in FAMILY]


def test_every_scorer_has_a_card():
    assert {found.card.name for found in family()} == FAMILY


@pytest.mark.parametrize("found", family(), ids=lambda found: found.card.name)
def test_a_card_fits_its_target(found: Found[RewardCard]):
    card, target = found.card, resolve_target(found.card.target)
    stated = {"device": "cpu", "revision": card.revision, "file": card.file, "sha256": card.sha256}
    options: dict[str, Any] = {**card.options, **{key: value for key, value in stated.items() if value is not None}}
    check_options(card.target, target.from_pretrained, options)
    assert card.differentiable is target.differentiable is True
    assert card.groupwise is getattr(target, "groupwise", False)
    assert {"preprocess", "dtype", "micro_batch"} <= card.options.keys()
    assert (card.options["preprocess"], card.options["dtype"]) == ("auto", "float32")
    assert card.requires == (("open_clip",) if card.name.startswith("hpsv2") else ())


def test_constants_are_those_of_published_code():
    pickscore, imagereward = (load_reward_card(name).card for name in ("pickscore", "imagereward"))
    constants = {name: (scale.mean, scale.std) for name, scale in pickscore.scales.items()}
    assert constants == {"flow_grpo": (0.0, 26.0), "mixgrpo": (18.0, 8.0)}
    raw = torch.tensor([-2.0, 0.0, 1.06], dtype=torch.float64)  # what the head puts out
    scale = imagereward.scales["ttsnap"]
    assert torch.allclose(((raw - MEAN) / STD - scale.mean) / scale.std, raw, atol=1e-5)
    statistics = imagereward.statistics
    assert statistics is not None
    measured = {"mean": 1.06, "std": 0.83, "within_prompt_std": 0.438}  # of that output
    assert statistics.mean == pytest.approx((measured["mean"] - MEAN) / STD, abs=1e-3)
    assert statistics.std == pytest.approx(measured["std"] / STD, abs=1e-3)
    assert statistics.within_prompt_std == pytest.approx(measured["within_prompt_std"] / STD, abs=1e-3)
