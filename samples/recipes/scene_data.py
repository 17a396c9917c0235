"""Training scenes for the recipes: balanced over kinds, never a held-out composition."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from difalign.embedded.render import Array, render
from difalign.embedded.scenes import KINDS, Kind, Placed, SceneSpec, all_specs, draw_layout, is_held_out

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


def draw_specs(number: int, rng: np.random.Generator) -> list[SceneSpec]:
    """Random training scenes, kinds by ``KIND_SHARE``, uniform within a kind."""
    pools = {kind: training_specs(kind) for kind in KINDS}
    kinds = rng.choice(len(KINDS), size=number, p=[KIND_SHARE[kind] for kind in KINDS])
    return [pools[KINDS[k]][rng.integers(len(pools[KINDS[k]]))] for k in kinds]


def draw_images(specs: Sequence[SceneSpec], rng: np.random.Generator) -> Array:
    """One random picture of each scene, [N, 3, SIZE, SIZE] in [0, 1]."""
    layouts: list[tuple[Placed, ...]] = [draw_layout(spec, rng) for spec in specs]
    return render(layouts)
