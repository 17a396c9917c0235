"""Training scenes for the recipes: balanced over kinds, never a held-out composition."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import numpy as np

from difalign.embedded.render import Array, render
from difalign.embedded.scenes import (
    BACKGROUND,
    KINDS,
    SIZE,
    Kind,
    Placed,
    SceneSpec,
    all_specs,
    draw_layout,
    is_held_out,
)

# Enough single things and positions for crisp shapes early; pairs are learnt last and are left with room to improve.
KIND_SHARE: dict[Kind, float] = {
    "single": 0.14,
    "place": 0.18,
    "count": 0.22,
    "two": 0.05,
    "relation": 0.18,
    "count_pair": 0.23,
}


@functools.cache
def training_specs(kind: Kind) -> tuple[SceneSpec, ...]:
    """The scenes of a kind that training may see."""
    return tuple(spec for spec in all_specs(kind) if not is_held_out(spec))


def draw_specs(number: int, rng: np.random.Generator, shares: Mapping[Kind, float] = KIND_SHARE) -> list[SceneSpec]:
    """Random training scenes, kinds by ``shares``, uniform within a kind."""
    pools = {kind: training_specs(kind) for kind in KINDS}
    kinds = rng.choice(len(KINDS), size=number, p=[shares[kind] for kind in KINDS])
    return [pools[KINDS[k]][rng.integers(len(pools[KINDS[k]]))] for k in kinds]


def draw_images(specs: Sequence[SceneSpec], rng: np.random.Generator) -> Array:
    """One random picture of each scene, [N, 3, SIZE, SIZE] in [0, 1]."""
    layouts: list[tuple[Placed, ...]] = [draw_layout(spec, rng) for spec in specs]
    return render(layouts)


def framed(images: Array, side: int) -> Array:
    """Pictures [N, 3, SIZE, SIZE] in the middle of a larger background, [N, 3, side, side]."""
    margin, odd = divmod(side - SIZE, 2)
    if margin < 0 or odd:
        raise ValueError(f"pictures of {SIZE} pixels have no place in the middle of {side}")
    wide = np.empty((*images.shape[:2], side, side), dtype=images.dtype)
    wide[:] = np.asarray(BACKGROUND, dtype=images.dtype)[None, :, None, None] / 255
    wide[:, :, margin : margin + SIZE, margin : margin + SIZE] = images
    return wide
