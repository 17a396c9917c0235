"""How well a CLIP reward tells captions and pictures of scenes apart: retrieval, and captions with one change."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scene_claims import CHANGES, Change, changed_captions, is_true
from scene_data import framed

from difalign.embedded.render import render
from difalign.embedded.scenes import KINDS, SIZE, Placed, SceneSpec, all_specs, draw_layout, is_held_out
from difalign.reward_models.clip import ClipReward

Split = Literal["heldout", "train"]

FRAME = 40  # pixels a side of tiny-sd15's pictures


@dataclass(frozen=True, slots=True)
class Share:
    """A measured share with its standard error and the number it is of.

    The error is that of (hits + 1) / (n + 2), so that no finite number of hits makes a share certain.
    """

    mean: float
    se: float
    n: int

    @classmethod
    def of(cls, hits: NDArray[np.bool_]) -> Share:
        """The share of hits."""
        number = len(hits)
        likely = (int(hits.sum()) + 1) / (number + 2)
        return cls(round(float(hits.mean()), 4), round((likely * (1 - likely) / number) ** 0.5, 4), number)

    def plain(self) -> dict[str, float | int]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Retrieval:
    """Top-1 accuracy in both directions."""

    image_to_text: Share
    text_to_image: Share


@functools.cache
def pool(split: Split) -> tuple[tuple[SceneSpec, ...], ...]:
    """The scenes of a split, by kind."""
    return tuple(tuple(spec for spec in all_specs(kind) if is_held_out(spec) == (split == "heldout")) for kind in KINDS)


def draw_pool(split: Split, number: int, rng: np.random.Generator) -> list[SceneSpec]:
    """Random scenes of a split, all kinds with equal chances."""
    pools = pool(split)
    return [kind[rng.integers(len(kind))] for kind in (pools[k] for k in rng.integers(len(pools), size=number))]


@torch.no_grad()
def embed_layouts(reward: ClipReward, layouts: Sequence[Sequence[Placed]], side: int) -> torch.Tensor:
    """Embeddings of pictures of layouts, a frame of background around them up to ``side`` pixels, [N, D]."""
    return reward.embed_images(torch.from_numpy(framed(render(layouts), side)))


def retrieval(reward: ClipReward, split: Split, *, number: int, seed: int, side: int = SIZE) -> Retrieval:
    """How often the nearest caption of a picture is its own, and the other way round, among ``number`` fresh pairs.

    Captions that are true of a picture without being its own are left out of the comparison.
    """
    rng = np.random.default_rng(seed)
    specs = draw_pool(split, number, rng)
    layouts = [draw_layout(spec, rng) for spec in specs]
    cosine = embed_layouts(reward, layouts, side) @ reward.embed_texts([spec.caption for spec in specs]).T
    others = torch.from_numpy(is_true(specs, layouts)) & ~torch.eye(number, dtype=torch.bool)
    cosine = cosine.masked_fill(others, -torch.inf)
    own = torch.arange(number)
    return Retrieval(Share.of((cosine.argmax(dim=1) == own).numpy()), Share.of((cosine.argmax(dim=0) == own).numpy()))


def preferences(reward: ClipReward, split: Split, *, number: int, seed: int, side: int = SIZE) -> dict[Change, Share]:
    """How often a picture scores higher with its caption than with one that is false by one attribute, by attribute."""
    return {
        change: Share.of(_preferred(reward, split, change, number=number, side=side, rng=np.random.default_rng(seed)))
        for change in CHANGES
    }


def _preferred(
    reward: ClipReward, split: Split, change: Change, *, number: int, side: int, rng: np.random.Generator
) -> NDArray[np.bool_]:
    specs, wrongs, layouts = [], [], []
    while len(specs) < number:
        (spec,) = draw_pool(split, 1, rng)
        layout = draw_layout(spec, rng)
        changed = changed_captions(spec)[change]
        wrong = [other for other, true in zip(changed, is_true(changed, [layout])[0], strict=True) if not true]
        if wrong:
            specs.append(spec)
            layouts.append(layout)
            wrongs.append(wrong[rng.integers(len(wrong))])
    images = embed_layouts(reward, layouts, side)
    right, false = (reward.embed_texts([spec.caption for spec in texts]) for texts in (specs, wrongs))
    return ((images * right).sum(dim=1) > (images * false).sum(dim=1)).numpy()
