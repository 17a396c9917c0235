"""The shipped CLIP reward: its size, that transformers alone loads it, and that it is as good as its card says."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import CLIPModel, CLIPProcessor

import difalign
from difalign.build.cards import load_reward_card
from difalign.embedded.render import render
from difalign.embedded.scenes import CELL, SIZE, Placed, Thing, draw_layout, parse_caption
from difalign.reward_models.clip import ClipReward
from tests.samples.recipe_modules import RECIPES, ROOT, recipe_module

SHIPPED = ROOT / "reward_models" / "tiny-clip"
SPLITS = ("heldout", "train")


@pytest.fixture(scope="module")
def reward() -> ClipReward:
    loaded = difalign.load_reward("tiny-clip")
    assert isinstance(loaded, ClipReward)
    return loaded


@pytest.fixture(scope="module")
def figures() -> dict[str, Any]:
    return json.loads((SHIPPED / "figures.json").read_text())


def drawn(captions: list[str], *, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(render([draw_layout(parse_caption(caption), rng) for caption in captions]))


def test_it_is_small_and_stored_in_half_precision() -> None:
    path = SHIPPED / "model.safetensors"
    assert path.stat().st_size <= 2.5 * 2**20
    with safe_open(path, framework="pt") as file:
        assert {file.get_slice(key).get_dtype() for key in file.keys()} == {"F16"}  # noqa: SIM118  # no mapping


def test_transformers_alone_scores_as_the_reward_does(reward: ClipReward) -> None:
    captions = ["a red circle", "two blue squares", "a white cross above a green triangle"]
    pixels = (drawn(captions) * 255).round() / 255
    processor = CLIPProcessor.from_pretrained(SHIPPED)
    pictures = list((pixels * 255).to(torch.uint8).permute(0, 2, 3, 1).numpy())
    inputs = processor(text=captions, images=pictures, return_tensors="pt", padding=True, truncation=True)
    model = CLIPModel.from_pretrained(SHIPPED)
    assert model.dtype == torch.float32
    with torch.no_grad():
        output = model(**inputs)
        cosine = output.logits_per_image.diagonal() / model.logit_scale.exp()
    assert torch.allclose(reward.score(pixels, captions).scores, cosine, atol=1e-5)


def test_its_files_say_nothing_of_where_they_were_made() -> None:
    for path in SHIPPED.glob("*.json"):
        assert "_name_or_path" not in path.read_text(), path


@pytest.mark.golden
@pytest.mark.parametrize("split", SPLITS)
def test_it_recognises_fresh_scenes(reward: ClipReward, figures: dict[str, Any], split: str) -> None:
    """Few scenes, so a margin of five standard errors below the recorded shares."""
    measures = recipe_module("clip_measures")
    recorded = figures[f"{split}, {SIZE} pixels"]
    # Fewer captions to choose from make retrieval easier, never harder.
    found = measures.retrieval(reward, split, number=128, seed=21)
    for name in ("image_to_text", "text_to_image"):
        share, then = getattr(found, name), min(recorded["retrieval"][name]["mean"], 0.99)
        assert share.mean > then - 5 * (then * (1 - then) / share.n) ** 0.5, name
    for change, share in measures.preferences(reward, split, number=80, seed=22).items():
        then = min(recorded["prefers_true_caption"][change]["mean"], 0.99)
        assert share.mean > then - 5 * (then * (1 - then) / share.n) ** 0.5, change


def test_its_figures_are_those_of_a_useful_reward(figures: dict[str, Any]) -> None:
    for split in SPLITS:
        for side in (SIZE, recipe_module("clip_measures").FRAME):
            shares = figures[f"{split}, {side} pixels"]["prefers_true_caption"]
            assert min(share["mean"] for share in shares.values()) >= 0.97, (split, side)
    agreement = figures["agreement"]
    assert agreement["auc_strict_within_prompt"]["mean"] > 0.9
    assert agreement["spearman_within_prompt"]["mean"] > 0.6
    picked, one = (agreement["best_of"][name]["strict"]["mean"] for name in ("by_reward", "one"))
    assert picked > one + 0.3


def test_following_its_gradient_turns_a_picture_towards_the_caption(reward: ClipReward) -> None:
    pixels = drawn(["a red circle"] * 2).requires_grad_(True)
    wanted = ["a blue square"] * 2
    before = reward.score(pixels, wanted).scores
    (slope,) = torch.autograd.grad(before.sum(), pixels)
    with torch.no_grad():
        moved = (pixels + 0.02 * slope.sign()).clamp(0, 1)
        assert (reward.score(moved, wanted).scores > before + 0.01).all()


@pytest.mark.golden
def test_it_misses_surplus_as_its_card_says(reward: ClipReward) -> None:
    """It never saw more than four things: a fifth passes, a missing one does not."""
    rng = np.random.default_rng(0)
    scores = {}
    for number in (3, 4, 5):
        layouts = [triangles(number, rng) for _ in range(40)]
        output = reward.score(torch.from_numpy(render(layouts)), ["four red triangles"] * len(layouts))
        scores[number] = float(output.scores.mean())
    assert scores[3] < scores[4] - 0.1
    assert scores[5] == pytest.approx(scores[4], abs=0.04)


def triangles(number: int, rng: np.random.Generator) -> tuple[Placed, ...]:
    cells = rng.permutation(9)[:number]
    return tuple(Placed(Thing("red", "triangle"), c % 3 * CELL + 6.0, c // 3 * CELL + 6.0, 4.5) for c in cells)


def test_its_card_offers_every_option_of_the_adapter() -> None:
    accepted = inspect.signature(ClipReward.from_pretrained).parameters
    assert {*load_reward_card("tiny-clip").card.options} <= {*accepted}
    assert (
        difalign.load_reward("tiny-clip", options={"scale": "clipscore"})
        .score(drawn(["a red circle"]), ["a red circle"])
        .scores
        > 1.0
    )


def test_a_run_can_mix_it_with_the_verifier(tmp_path: Path) -> None:
    summary = difalign.align(
        overrides=[
            "name=mix",
            f"output_dir={tmp_path / 'run'}",
            "rewards.tiny-clip.weight=0.5",
            "rewards.verifier.weight=0.5",
            "sampling.prompts_per_update=2",
            "sampling.samples_per_prompt=4",
            "sampling.steps=4",
            "training.rollouts=1",
            "training.updates_per_rollout=1",
            "evaluation.limit=4",
            "evaluation.steps=4",
            "training.checkpoint.every=0",
        ]
    )
    assert summary
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    names = {name for row in rows for name in row}
    assert any("tiny-clip" in name for name in names), names
    assert any("verifier" in name for name in names), names


@pytest.mark.slow
@pytest.mark.golden
def test_its_figures_are_reproduced(figures: dict[str, Any], tmp_path: Path) -> None:
    """A fresh measurement, other seed and fewer pictures, agrees with the recorded one within four standard errors."""
    command = [sys.executable, str(RECIPES / "evaluate_tiny_clip.py"), "--model", str(SHIPPED), "--out", str(tmp_path)]
    command += ["--seed", "2", "--per-change", "300"]
    command += ["--prompts", str(ROOT / "samples" / "prompts" / "tiny_heldout.jsonl"), "--prompts-per-kind", "6"]
    subprocess.run(command, check=True, timeout=900, capture_output=True)
    measured = json.loads((tmp_path / "figures.json").read_text())
    compared = 0
    for path, now in shares(measured):
        then = at(figures, path)
        spread = (now["se"] ** 2 + then["se"] ** 2) ** 0.5
        assert now["mean"] == pytest.approx(then["mean"], abs=4 * spread), path
        compared += 1
    assert compared > 40
    assert (tmp_path / "sheet.png").stat().st_size > 10_000


def shares(tree: Any, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], dict[str, float]]]:
    """Every measured value of a tree of figures, with where it stands."""
    if not isinstance(tree, dict):
        return []
    if {"mean", "se"} <= set(tree):
        return [(path, tree)]
    return [found for name, below in tree.items() for found in shares(below, (*path, name))]


def at(tree: Any, path: tuple[str, ...]) -> dict[str, float]:
    for name in path:
        tree = tree[name]
    return tree
