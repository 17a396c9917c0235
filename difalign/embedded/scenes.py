"""The scene grammar: what can be said, what can be drawn, and which compositions are held out.

A caption names one or two kinds of things. Six kinds of caption, from easy to hard::

    single      a red circle
    place       a red circle at the left            (left, right, top, bottom)
    count       three blue squares                  (two to four)
    two         a red circle and a blue square
    relation    a red circle left of a blue square  (left of, right of, above, below)
    count_pair  two red circles and a blue square   (two or three of the first)

They mirror GenEval's single object / colours, position, counting, two object / attribute binding
(Ghosh et al. 2023, arXiv 2310.11513).
"""

from __future__ import annotations

import hashlib
import itertools
import re
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

Kind = Literal["single", "place", "count", "two", "relation", "count_pair"]
KINDS: tuple[Kind, ...] = get_args(Kind)

SHAPES = ("circle", "square", "triangle", "cross")
PLURALS = {"circle": "circles", "square": "squares", "triangle": "triangles", "cross": "crosses"}
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (230, 40, 40),
    "green": (40, 190, 60),
    "blue": (50, 90, 240),
    "yellow": (245, 220, 50),
    "purple": (190, 60, 220),
    "white": (240, 240, 240),
}
BACKGROUND = (20, 20, 24)
NUMBERS = {"two": 2, "three": 3, "four": 4}
NUMBER_WORDS = {value: word for word, value in NUMBERS.items()}
PLACES = ("left", "right", "top", "bottom")
RELATIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}  # sign of (dx, dy), y down

GRID = 3  # cells a side
CELL = 12  # pixels a cell
SIZE = GRID * CELL  # pixels a side of the image
RADIUS = (4.2, 4.8)  # pixels, uniform
JITTER = 0.6  # pixels, uniform in [-JITTER, JITTER] around the cell centre

HELD_OUT_SHARE = {"single": 0.25, "place": 0.2, "count": 0.25, "pair": 0.15}


@dataclass(frozen=True, slots=True, order=True)
class Thing:
    """A colour and a shape."""

    color: str
    shape: str

    def __str__(self) -> str:
        return f"{self.color} {self.shape}"


@dataclass(frozen=True, slots=True)
class Placed:
    """A thing in the image: centroid and radius in pixels, y downwards."""

    thing: Thing
    x: float
    y: float
    radius: float


@dataclass(frozen=True, slots=True)
class SceneSpec:
    """What a caption says: groups of things with their numbers, and at most one place or relation."""

    kind: Kind
    groups: tuple[tuple[int, Thing], ...]
    place: str | None = None
    relation: str | None = None

    @property
    def total(self) -> int:
        """How many objects the scene holds."""
        return sum(count for count, _ in self.groups)

    @property
    def caption(self) -> str:
        """The caption in words."""
        phrases = [
            f"a {thing}" if n == 1 else f"{NUMBER_WORDS[n]} {thing.color} {PLURALS[thing.shape]}"
            for n, thing in self.groups
        ]
        if self.place:
            return f"{phrases[0]} at the {self.place}"
        return (f" {self.relation} " if self.relation else " and ").join(phrases)


ALL_THINGS = tuple(Thing(color, shape) for color in COLORS for shape in SHAPES)

_SINGULAR = {plural: shape for shape, plural in PLURALS.items()}
_SHAPE_WORDS = "|".join((*SHAPES, *_SINGULAR))
_THING = rf"(?P<number{{0}}>a|two|three|four) (?P<color{{0}}>{'|'.join(COLORS)}) (?P<shape{{0}}>{_SHAPE_WORDS})"
_CAPTION = re.compile(
    _THING.format(1)
    + rf"(?: at the (?P<place>{'|'.join(PLACES)})| (?P<joint>and|{'|'.join(RELATIONS)}) {_THING.format(2)})?"
)


def parse_caption(caption: str) -> SceneSpec:
    """Read a caption of the grammar.

    Raises:
        ValueError: if the caption is not of the grammar; the message shows the forms that are.
    """
    match = _CAPTION.fullmatch(" ".join(caption.lower().split()).rstrip("."))
    spec = _spec_from_match(match) if match else None
    if spec is None:
        raise ValueError(
            f"caption {caption!r} is not in the scene grammar; say for instance 'a red circle', "
            "'a red circle at the left', 'three blue squares', 'a red circle and a blue square', "
            "'a red circle left of a blue square' or "
            f"'two red circles and a blue square' (colours: {', '.join(COLORS)}; shapes: {', '.join(SHAPES)})"
        )
    return spec


def _spec_from_match(match: re.Match[str]) -> SceneSpec | None:
    groups = [_group(match, i) for i in ("1", "2") if match[f"shape{i}"]]
    if any(group is None for group in groups):
        return None
    known = tuple(group for group in groups if group is not None)
    counts = tuple(count for count, _ in known)
    place, joint = match["place"], match["joint"]
    if len(known) == 1:
        if place:
            return SceneSpec("place", known, place=place) if counts == (1,) else None
        return SceneSpec("single" if counts == (1,) else "count", known)
    if known[0][1] == known[1][1] or counts[1] != 1:
        return None
    if joint != "and":
        return SceneSpec("relation", known, relation=joint) if counts == (1, 1) else None
    return SceneSpec("two" if counts == (1, 1) else "count_pair", known) if counts[0] <= 3 else None


def _group(match: re.Match[str], index: str) -> tuple[int, Thing] | None:
    count = NUMBERS.get(match[f"number{index}"], 1)
    word = match[f"shape{index}"]
    plural = word in _SINGULAR
    if plural != (count > 1):
        return None
    return count, Thing(match[f"color{index}"], _SINGULAR.get(word, word))


def all_specs(kind: Kind) -> tuple[SceneSpec, ...]:
    """Every scene of a kind, in a fixed order."""
    things, pairs = ALL_THINGS, tuple(itertools.permutations(ALL_THINGS, 2))
    if kind == "single":
        return tuple(SceneSpec(kind, ((1, t),)) for t in things)
    if kind == "place":
        return tuple(SceneSpec(kind, ((1, t),), place=place) for t in things for place in PLACES)
    if kind == "count":
        return tuple(SceneSpec(kind, ((n, t),)) for t in things for n in NUMBERS.values())
    if kind == "two":
        return tuple(SceneSpec(kind, ((1, a), (1, b))) for a, b in pairs)
    if kind == "relation":
        return tuple(SceneSpec(kind, ((1, a), (1, b)), relation=r) for a, b in pairs for r in RELATIONS)
    return tuple(SceneSpec(kind, ((n, a), (1, b))) for a, b in pairs for n in (2, 3))


def is_held_out(spec: SceneSpec) -> bool:
    """Whether a composition is kept out of all training, of the base model and of alignment alike.

    Two-object scenes are held out by the unordered *pair* of things, in every kind and order at once, so that a
    held-out pair is never drawn in any training image; the others by (thing), (thing, place) and (number, thing).
    """
    things = [thing for _, thing in spec.groups]
    if len(things) == 2:
        key, share = ("pair", *map(str, sorted(things))), HELD_OUT_SHARE["pair"]
    else:
        key, share = (spec.kind, spec.groups[0][0], str(things[0]), spec.place), HELD_OUT_SHARE[spec.kind]
    digest = hashlib.sha256(repr(key).encode()).digest()
    return int.from_bytes(digest[:4], "big") / 2**32 < share


def draw_layout(spec: SceneSpec, rng: np.random.Generator) -> tuple[Placed, ...]:
    """Place the objects of a scene: distinct cells of the grid, jittered, any cells that make the caption true."""
    cells = _choose_cells(spec, rng)
    things = [thing for count, thing in spec.groups for _ in range(count)]
    offsets = rng.uniform(-JITTER, JITTER, size=(len(things), 2))
    radii = rng.uniform(*RADIUS, size=len(things))
    return tuple(
        Placed(thing, (col + 0.5) * CELL + dx, (row + 0.5) * CELL + dy, float(radius))
        for thing, (col, row), (dx, dy), radius in zip(things, cells, offsets, radii, strict=True)
    )


_CELLS = tuple((col, row) for row in range(GRID) for col in range(GRID))
_PLACE_CELLS = {
    "left": tuple(c for c in _CELLS if c[0] == 0),
    "right": tuple(c for c in _CELLS if c[0] == GRID - 1),
    "top": tuple(c for c in _CELLS if c[1] == 0),
    "bottom": tuple(c for c in _CELLS if c[1] == GRID - 1),
}


def _relation_cells() -> dict[str, tuple[tuple[tuple[int, int], tuple[int, int]], ...]]:
    """Pairs of cells for which a relation is plainly true: apart along its axis at least as far as across it."""
    table = {}
    for name, (sx, sy) in RELATIONS.items():
        pairs = []
        for a, b in itertools.permutations(_CELLS, 2):
            dx, dy = a[0] - b[0], a[1] - b[1]
            along, across = (dx * sx, abs(dy)) if sx else (dy * sy, abs(dx))
            if along > 0 and along >= across:
                pairs.append((a, b))
        table[name] = tuple(pairs)
    return table


_RELATION_CELLS = _relation_cells()


def _choose_cells(spec: SceneSpec, rng: np.random.Generator) -> tuple[tuple[int, int], ...]:
    if spec.place:
        options = _PLACE_CELLS[spec.place]
        return (options[rng.integers(len(options))],)
    if spec.relation:
        pairs = _RELATION_CELLS[spec.relation]
        return pairs[rng.integers(len(pairs))]
    return tuple(_CELLS[i] for i in rng.choice(len(_CELLS), size=spec.total, replace=False))
