"""What captions claim and what layouts show, compared in bulk; and captions that differ in one attribute.

Contrastive training must not push a picture away from a caption that is true of it: "a above b" says what "b below a"
says, and "a red circle" is true of every picture of a red circle at the left.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from difalign.embedded.scenes import (
    CELL,
    COLORS,
    NUMBERS,
    PLACES,
    RELATIONS,
    SHAPES,
    SIZE,
    Placed,
    SceneSpec,
    Thing,
    parse_caption,
)

Change = Literal["color", "shape", "count", "relation", "place", "binding"]
CHANGES: tuple[Change, ...] = get_args(Change)

_OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
_MARGIN = CELL / 3  # pixels by which a relation must hold, as the verifier has it


@functools.cache
def changed_captions(spec: SceneSpec) -> Mapping[Change, tuple[SceneSpec, ...]]:
    """Every caption of the grammar that differs from this one in one attribute, by attribute; some have none.

    *count* may add a first second thing or take the last but one away; *relation* names another direction or exchanges
    the two things; *binding* exchanges colours, or, where the numbers differ, the numbers.
    """
    return {change: tuple(_of_grammar(candidates(spec))) for change, candidates in _CANDIDATES.items()}


def _of_grammar(candidates: Iterable[SceneSpec]) -> Iterator[SceneSpec]:
    for candidate in candidates:
        try:
            yield parse_caption(candidate.caption)  # gives it its kind
        except ValueError:  # such as two kinds of thing that have become the same
            continue


def _colors(spec: SceneSpec) -> Iterator[SceneSpec]:
    for at, (count, thing) in enumerate(spec.groups):
        yield from (_with_group(spec, at, count, Thing(color, thing.shape)) for color in COLORS if color != thing.color)


def _shapes(spec: SceneSpec) -> Iterator[SceneSpec]:
    for at, (count, thing) in enumerate(spec.groups):
        yield from (_with_group(spec, at, count, Thing(thing.color, shape)) for shape in SHAPES if shape != thing.shape)


def _counts(spec: SceneSpec) -> Iterator[SceneSpec]:
    if not spec.place and not spec.relation:
        count, thing = spec.groups[0]
        yield from (_with_group(spec, 0, other, thing) for other in (1, *NUMBERS.values()) if other != count)


def _relations(spec: SceneSpec) -> Iterator[SceneSpec]:
    if spec.relation:
        yield from (replace(spec, relation=relation) for relation in RELATIONS if relation != spec.relation)
        yield replace(spec, groups=spec.groups[::-1])


def _places(spec: SceneSpec) -> Iterator[SceneSpec]:
    if spec.place:
        yield from (replace(spec, place=place) for place in PLACES if place != spec.place)


def _bindings(spec: SceneSpec) -> Iterator[SceneSpec]:
    if len(spec.groups) == 2:
        (count, a), (_, b) = spec.groups
        if a.color != b.color and a.shape != b.shape:
            yield replace(spec, groups=((count, Thing(b.color, a.shape)), (1, Thing(a.color, b.shape))))
        if count > 1:
            yield replace(spec, groups=((count, b), (1, a)))


_CANDIDATES: Mapping[Change, Callable[[SceneSpec], Iterator[SceneSpec]]] = {
    "color": _colors,
    "shape": _shapes,
    "count": _counts,
    "relation": _relations,
    "place": _places,
    "binding": _bindings,
}


def _with_group(spec: SceneSpec, at: int, count: int, thing: Thing) -> SceneSpec:
    groups = list(spec.groups)
    groups[at] = (count, thing)
    return replace(spec, groups=tuple(groups))


@dataclass(frozen=True, slots=True)
class Claims:
    """What captions say or layouts show, row by row."""

    contents: NDArray[np.int64]  # [N] which things how often, numbered by first appearance
    geometry: NDArray[np.uint8]  # [N] bits: of one thing its places, of two the relations of the first by name


def is_true(specs: Sequence[SceneSpec], layouts: Sequence[Sequence[Placed]]) -> NDArray[np.bool_]:
    """Whether each layout shows exactly what each caption says, [layouts, captions], by the verifier's rules."""
    numbers: dict[tuple[Thing, ...], int] = {}
    said = _rows([_of_spec(spec) for spec in specs], numbers)
    shown = _rows([_of_layout(layout) for layout in layouts], numbers)
    same = shown.contents[:, None] == said.contents[None]
    return same & ((shown.geometry[:, None] & said.geometry[None]) == said.geometry[None])


def _rows(claims: Sequence[tuple[tuple[Thing, ...], int]], numbers: dict[tuple[Thing, ...], int]) -> Claims:
    contents = [numbers.setdefault(things, len(numbers)) for things, _ in claims]
    return Claims(np.asarray(contents), np.asarray([geometry for _, geometry in claims], dtype=np.uint8))


def _bit(names: Sequence[str], name: str) -> int:
    return 1 << list(names).index(name)


def _of_spec(spec: SceneSpec) -> tuple[tuple[Thing, ...], int]:
    things = tuple(sorted(thing for count, thing in spec.groups for _ in range(count)))
    if spec.place:
        return things, _bit(PLACES, spec.place)
    if spec.relation:
        first = spec.groups[0][1]
        relation = spec.relation if first == things[0] else _OPPOSITE[spec.relation]
        return things, _bit(tuple(RELATIONS), relation)
    return things, 0


def _of_layout(layout: Sequence[Placed]) -> tuple[tuple[Thing, ...], int]:
    placed = sorted(layout, key=lambda one: one.thing)
    bits = 0
    if len(placed) == 1:
        x, y = placed[0].x / SIZE, placed[0].y / SIZE
        holds = {"left": x < 1 / 3, "right": x > 2 / 3, "top": y < 1 / 3, "bottom": y > 2 / 3}
        bits = sum(_bit(PLACES, place) for place, true in holds.items() if true)
    elif len(placed) == 2:
        dx, dy = placed[0].x - placed[1].x, placed[0].y - placed[1].y
        for relation, (sx, sy) in RELATIONS.items():
            if dx * sx + dy * sy >= _MARGIN:
                bits |= _bit(tuple(RELATIONS), relation)
    return tuple(one.thing for one in placed), bits
