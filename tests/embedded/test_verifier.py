"""The verifier: right on ground truth, low on everything a policy might try instead."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from difalign.embedded.parse import parse_images
from difalign.embedded.render import render
from difalign.embedded.scenes import (
    BACKGROUND,
    COLORS,
    KINDS,
    SIZE,
    Placed,
    SceneSpec,
    Thing,
    all_specs,
    draw_layout,
    parse_caption,
)
from difalign.embedded.verifier import judge, verify

RED_CIRCLE = Thing("red", "circle")


def draw(kind: str, number: int, seed: int = 0) -> tuple[np.ndarray, list[str]]:
    rng = np.random.default_rng(seed)
    pool = all_specs(kind)  # type: ignore[arg-type]
    specs = [pool[i] for i in rng.integers(len(pool), size=number)]
    return render([draw_layout(spec, rng) for spec in specs]), [spec.caption for spec in specs]


def one(*objects: Placed) -> np.ndarray:
    return render([objects])


def scores(images: np.ndarray, caption: str) -> tuple[float, float]:
    result = verify(images.astype(np.float32), [caption] * len(images))
    return float(result.strict.mean()), float(result.partial.mean())


@pytest.mark.parametrize("kind", KINDS)
def test_ground_truth_is_right_also_under_noise_and_wrong_captions_are_not(kind) -> None:
    images, captions = draw(kind, 200)
    assert verify(images, captions).strict.mean() >= 0.99
    assert verify(images, captions).partial.min() >= 0.99
    noisy = images + np.random.default_rng(1).normal(0, 0.06, images.shape).astype(np.float32)
    assert verify(noisy, captions).strict.mean() >= 0.97
    others = captions[1:] + captions[:1]
    wrong = np.asarray([a != b for a, b in zip(captions, others, strict=True)])
    assert verify(images, others).strict[wrong].mean() <= 0.02  # a thing at the left may also be at the top


def adversarial() -> dict[str, np.ndarray]:
    """Images that are not "a red circle", by the trick each tries."""
    rng = np.random.default_rng(0)
    background = np.asarray(BACKGROUND, dtype=np.float32)[None, :, None, None] / 255
    blank = np.broadcast_to(background, (8, 3, SIZE, SIZE)).astype(np.float32)
    red = np.asarray(COLORS["red"], dtype=np.float32)[None, :, None, None] / 255
    good = one(Placed(RED_CIRCLE, 18.0, 18.0, 4.5))
    half = good.copy()
    half[:, :, :, 18:] = background
    hollow = good.copy()
    hollow[:, :, 16:20, 16:20] = background
    two_tone = good.copy()
    two_tone[:, :, :, 18:] = one(Placed(Thing("blue", "circle"), 18.0, 18.0, 4.5))[:, :, :, 18:]
    smeared = blank[:1].copy()
    smeared[:, :, 10:26, 4:32] = red
    return {
        "blank": blank,
        "black": np.zeros((1, 3, SIZE, SIZE)),
        "white": np.ones((1, 3, SIZE, SIZE)),
        "all red": np.broadcast_to(red, (1, 3, SIZE, SIZE)),
        "uniform noise": rng.uniform(size=(32, 3, SIZE, SIZE)),
        "red noise": blank + red * rng.uniform(size=(8, 1, SIZE, SIZE)),
        "smeared colour": smeared,
        "half an object": half,
        "hollow": hollow,
        "two colours in one": two_tone,
        "faint": background + (good - background) * 0.45,
        "orange": np.clip(good + (good[:, :1] > 0.5) * np.asarray([0, 0.35, 0])[None, :, None, None], 0, 1),
        "tiny": one(Placed(RED_CIRCLE, 18.0, 18.0, 2.2)),
        "huge": one(Placed(RED_CIRCLE, 18.0, 18.0, 9.0)),
        "not a number": np.full((1, 3, SIZE, SIZE), np.nan),
    }


@pytest.mark.parametrize(("trick", "images"), adversarial().items(), ids=adversarial().keys())
def test_adversarial_images_score_low(trick, images) -> None:
    strict, partial = scores(images, "a red circle")
    assert strict == 0.0
    assert partial <= 0.3


def test_clutter_costs_strictness_and_then_everything() -> None:
    image = one(Placed(RED_CIRCLE, 18.0, 18.0, 4.5))
    rng = np.random.default_rng(0)
    specks, fog = image.copy(), image.copy()
    for row, col in rng.choice(9, size=(12, 2)):
        specks[0, :, row, col] = 0.9
    fog[:, :, :6] += 0.5
    assert scores(image, "a red circle") == (1.0, 1.0)
    assert scores(specks, "a red circle")[0] == 0.0
    strict, partial = scores(fog, "a red circle")
    assert strict == 0.0
    assert partial < 0.5


def test_more_than_asked_is_wrong() -> None:
    red, blue = Placed(RED_CIRCLE, 6.0, 6.0, 4.5), Placed(Thing("blue", "square"), 30.0, 18.0, 4.5)
    caption = "a red circle"
    assert scores(one(red), caption) == (1.0, 1.0)
    strict, partial = scores(one(red, blue), caption)
    assert strict == 0.0
    assert partial < 1.0
    crowd = [Placed(RED_CIRCLE, 6.0 + 12 * c, 6.0 + 12 * r, 4.5) for c in range(3) for r in range(3)]
    assert scores(one(*crowd), caption)[1] == 0.0
    assert scores(one(*crowd), "three red circles")[1] < 0.05


def test_partial_rises_with_every_thing_that_is_right() -> None:
    caption = "a red circle left of a blue square"
    left, right = (6.0, 18.0), (30.0, 18.0)

    def partial(*things: tuple[str, str, tuple[float, float]]) -> float:
        return scores(one(*(Placed(Thing(c, s), *at, 4.5) for c, s, at in things)), caption)[1]

    ladder = [
        partial(("green", "cross", left)),
        partial(("red", "cross", left)),
        partial(("red", "circle", left)),
        partial(("red", "circle", left), ("blue", "cross", right)),
        partial(("red", "circle", right), ("blue", "square", left)),
        partial(("red", "circle", left), ("blue", "square", right)),
    ]
    assert all(a < b for a, b in itertools.pairwise(ladder))
    assert ladder[-1] == 1.0


@pytest.mark.parametrize(
    ("caption", "x", "y", "right"),
    [
        ("a red circle at the left", 6, 30, True),
        ("a red circle at the left", 18, 18, False),
        ("a red circle at the top", 18, 6, True),
        ("a red circle at the top", 18, 30, False),
    ],
)
def test_place(caption, x, y, right) -> None:
    assert scores(one(Placed(RED_CIRCLE, float(x), float(y), 4.5)), caption)[0] == float(right)


def test_parsed_positions_and_radii() -> None:
    rng = np.random.default_rng(2)
    spec = parse_caption("two red crosses and a green triangle")
    layouts = [draw_layout(spec, rng) for _ in range(50)]
    for layout, parsed in zip(layouts, parse_images(render(layouts)), strict=True):
        truth = sorted((o.x, o.y, o.radius) for o in layout)
        found = sorted((o.x, o.y, o.radius) for o in parsed.objects)
        np.testing.assert_allclose(np.asarray(found)[:, :2], np.asarray(truth)[:, :2], atol=0.25)
        np.testing.assert_allclose(np.asarray(found)[:, 2], np.asarray(truth)[:, 2], atol=0.25)


def test_batch_mates_do_not_matter() -> None:
    images, captions = draw("count_pair", 12)
    together = verify(images, captions)
    for i in range(len(images)):
        alone = verify(images[i : i + 1], captions[i : i + 1])
        assert alone.partial[0] == together.partial[i]


def test_nothing_found_has_no_credit() -> None:
    spec = SceneSpec("single", ((1, RED_CIRCLE),))
    blank = parse_images(np.zeros((1, 3, SIZE, SIZE), dtype=np.float32))[0]
    verdict = judge(blank, spec)
    assert (verdict.strict, verdict.partial, verdict.groups, verdict.total) == (0.0, 0.0, 0.0, 0.0)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="2 images but 1 captions"):
        verify(np.zeros((2, 3, SIZE, SIZE), dtype=np.float32), ["a red circle"])
    with pytest.raises(ValueError, match=r"\(1, 36, 36, 3\)"):
        verify(np.zeros((1, SIZE, SIZE, 3), dtype=np.float32), ["a red circle"])
    with pytest.raises(ValueError, match="a dog"):
        verify(np.zeros((1, 3, SIZE, SIZE), dtype=np.float32), ["a dog"])
