"""The verifier: does an image show what its caption says?

``strict`` is 1 when everything is right and 0 otherwise; ``partial`` in [0, 1] gives credit per object, attribute,
count and relation, so that groups of samples seldom tie.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from difalign.embedded.parse import Found, ParsedImage, parse_images
from difalign.embedded.render import Array
from difalign.embedded.scenes import CELL, RELATIONS, SceneSpec, parse_caption

_CLEAN = 6.0  # clutter (fully bright pixels) that an image may have and still be strictly right
_DIRTY = 60.0  # clutter at which partial credit reaches zero
_MARGIN = CELL / 3  # pixels by which a relation must hold

_EXACT, _COLOR, _SHAPE = 0.6, 0.2, 0.2  # shares of a group's partial credit
_GROUPS, _TOTAL, _GEOMETRY = 0.6, 0.2, 0.2  # shares of the whole; without geometry the first two are rescaled


@dataclass(frozen=True, slots=True)
class Verdict:
    """How well one image fits its caption."""

    strict: float  # 0 or 1
    partial: float  # in [0, 1]
    groups: float  # objects with the right colour, shape and number, in [0, 1]
    total: float  # agreement of the total count, in [0, 1]
    geometry: float | None  # place or relation, 0 or 1; None where the caption names none


@dataclass(frozen=True, slots=True)
class Scores:
    """Verdicts of a batch as arrays."""

    strict: Array  # [N]
    partial: Array  # [N]


def verify(images: Array, captions: Sequence[str]) -> Scores:
    """Score images against captions of the scene grammar.

    Args:
        images: pixels in [0, 1], [N, 3, H, W].
        captions: one a picture.

    Raises:
        ValueError: if the numbers differ, a caption is outside the grammar or the array has another layout.
    """
    if len(images) != len(captions):
        raise ValueError(f"{len(images)} images but {len(captions)} captions; give one caption an image")
    specs = {caption: parse_caption(caption) for caption in set(captions)}
    verdicts = [judge(parsed, specs[c]) for parsed, c in zip(parse_images(images), captions, strict=True)]
    return Scores(
        strict=np.asarray([v.strict for v in verdicts], dtype=np.float32),
        partial=np.asarray([v.partial for v in verdicts], dtype=np.float32),
    )


def judge(parsed: ParsedImage, spec: SceneSpec) -> Verdict:
    """Hold what was found against what was asked for."""
    groups = _group_credit(parsed.objects, spec)
    seen = len(parsed.objects) + parsed.unrecognised
    total = max(0.0, 1.0 - abs(seen - spec.total) / spec.total)
    geometry = _geometry(parsed, spec)
    if geometry is None:
        partial = (_GROUPS * groups + _TOTAL * total) / (_GROUPS + _TOTAL)
    else:
        partial = _GROUPS * groups + _TOTAL * total + _GEOMETRY * geometry
    cleanliness = min(1.0, max(0.0, (_DIRTY - parsed.clutter) / (_DIRTY - _CLEAN)))
    counts = Counter(found.thing for found in parsed.objects)
    exact = counts == Counter({thing: n for n, thing in spec.groups})
    strict = exact and parsed.unrecognised == 0 and geometry in (None, 1.0) and parsed.clutter <= _CLEAN
    return Verdict(float(strict), partial * cleanliness, groups, total, geometry)


def _group_credit(objects: Sequence[Found], spec: SceneSpec) -> float:
    """Mean over groups of exact, colour-only and shape-only agreement; surplus costs as much as lack."""
    exact = Counter(found.thing for found in objects)
    colors = Counter(found.thing.color for found in objects)
    shapes = Counter(found.thing.shape for found in objects)
    wanted_colors, wanted_shapes = Counter[str](), Counter[str]()
    for count, thing in spec.groups:
        wanted_colors[thing.color] += count
        wanted_shapes[thing.shape] += count
    credit = [
        _EXACT * _agreement(exact[thing], count)
        + _COLOR * _agreement(colors[thing.color], wanted_colors[thing.color])
        + _SHAPE * _agreement(shapes[thing.shape], wanted_shapes[thing.shape])
        for count, thing in spec.groups
    ]
    return sum(credit) / len(credit)


def _agreement(found: int, wanted: int) -> float:
    return max(0.0, 1.0 - abs(found - wanted) / wanted) if found else 0.0


def _geometry(parsed: ParsedImage, spec: SceneSpec) -> float | None:
    first = [found for found in parsed.objects if found.thing == spec.groups[0][1]]
    if spec.place:
        return float(any(_is_at(found, spec.place, parsed.size) for found in first))
    if spec.relation:
        second = [found for found in parsed.objects if found.thing == spec.groups[1][1]]
        return float(any(_is_related(a, b, spec.relation) for a in first for b in second))
    return None


def _is_at(found: Found, place: str, size: tuple[int, int]) -> bool:
    """Whether it lies in the outer third of the picture."""
    across, down = found.x / size[0], found.y / size[1]
    return {"left": across < 1 / 3, "right": across > 2 / 3, "top": down < 1 / 3, "bottom": down > 2 / 3}[place]


def _is_related(a: Found, b: Found, relation: str) -> bool:
    sx, sy = RELATIONS[relation]
    return (a.x - b.x) * sx + (a.y - b.y) * sy >= _MARGIN
