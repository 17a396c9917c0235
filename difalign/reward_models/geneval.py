"""GenEval's rules: from what a detector found to whether a picture holds what its prompt asks for.

Ghosh et al. 2023, arXiv 2310.11513, section 3, with the graded score that Flow-GRPO (arXiv 2505.05470) trains on. Which
detector found the objects does not matter here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from difalign.reward_models.geneval_clauses import Clause, Task

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels; y grows downwards


@dataclass(frozen=True, slots=True)
class FoundObject:
    """One object that a detector found."""

    label: str
    box: Box
    score: float  # in [0, 1]
    mask: Any = None  # [H, W] bool, if the detector draws outlines


@dataclass(frozen=True, slots=True)
class KeepingRule:
    """Which of the found objects count."""

    threshold: float = 0.3  # GenEval; an object must score more
    counting_threshold: float = 0.9  # GenEval, for prompts with the tag counting
    max_objects: int = 16  # GenEval; of a class
    max_overlap: float = 1.0  # GenEval; intersection over union from which the weaker one goes, 1 = never

    def __post_init__(self) -> None:
        for option in ("threshold", "counting_threshold", "max_overlap"):
            if not 0.0 <= getattr(self, option) <= 1.0:
                raise ValueError(f"{option} = {getattr(self, option)}: must lie in [0, 1]")
        if self.max_objects < 1:
            raise ValueError(f"max_objects = {self.max_objects}: must be at least 1")


Objects = Mapping[str, Sequence[FoundObject]]  # of each class, the surest first
# The colour of every object of a class, in the words of ``geneval_clauses.COLOURS``.
ColourNamer = Callable[[str, Sequence[FoundObject]], Sequence[str]]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is right about a picture."""

    partial: float  # mean over the clauses' terms, at most 1; below 0 where there are far too many objects
    strict: float  # 1 if every count, colour and position is exactly right, else 0
    official: float  # GenEval's own: 1 if the surest objects, as many as asked for, are right and none is excluded
    reasons: tuple[str, ...] = ()  # why strict is 0


def keep_objects(found: Sequence[FoundObject], tag: str, *, rule: KeepingRule) -> Objects:
    """The objects that count for a prompt with this tag."""
    threshold = rule.counting_threshold if tag == "counting" else rule.threshold
    kept: dict[str, list[FoundObject]] = {}
    considered: dict[str, int] = {}
    for thing in sorted(found, key=lambda thing: -thing.score):
        if thing.score <= threshold:
            break
        considered[thing.label] = considered.get(thing.label, 0) + 1
        if considered[thing.label] > rule.max_objects:  # before overlaps are looked at, as in GenEval's code
            continue
        others = kept.setdefault(thing.label, [])
        if rule.max_overlap == 1.0 or all(overlap(thing.box, other.box) < rule.max_overlap for other in others):
            others.append(thing)
    return kept


def overlap(a: Box, b: Box) -> float:
    """Intersection over union, where a box includes its last row and column of pixels."""
    shared = _area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))
    union = _area(a) + _area(b) - shared
    return shared / union if union else 0.0


def _area(box: Box) -> float:
    return max(box[2] - box[0] + 1, 0.0) * max(box[3] - box[1] + 1, 0.0)


def relations(a: Box, b: Box, *, position_threshold: float = 0.1) -> frozenset[str]:
    """Where a lies as seen from b: none, one or two of left of, right of, above, below.

    The centres' offset along each axis is shortened by ``position_threshold`` times the sum of both lengths; of what
    remains, more than half of the whole offset names a direction.
    """
    along = [(a[axis] + a[axis + 2] - b[axis] - b[axis + 2]) / 2 for axis in (0, 1)]
    lengths = [abs(a[axis + 2] - a[axis]) + abs(b[axis + 2] - b[axis]) for axis in (0, 1)]
    left = [
        math.copysign(max(abs(offset) - position_threshold * length, 0.0), offset)
        for offset, length in zip(along, lengths, strict=True)
    ]
    if all(abs(value) < 1e-3 for value in left):  # pixels; GenEval
        return frozenset()
    dx, dy = (value / math.hypot(*along) for value in left)
    named = {"left of": dx < -0.5, "right of": dx > 0.5, "above": dy < -0.5, "below": dy > 0.5}
    return frozenset(name for name, holds in named.items() if holds)


def judge(
    task: Task,
    objects: Objects,
    colours: ColourNamer,
    *,
    position_threshold: float = 0.1,
    compat: str = "none",
) -> Verdict:
    """Compare what was found with what was asked for.

    Args:
        task: what was asked for.
        objects: what ``keep_objects`` kept.
        colours: names the colours of objects; asked only where the count is right.
        position_threshold: GenEval's, see ``relations``.
        compat: ``flow_grpo`` follows the released reward server, which adds a whole point after the zero of a violated
            position and lets ``strict`` pass where something excluded is there; ``none`` does neither.

    Raises:
        ValueError: if ``compat`` is unknown.
    """
    if compat not in COMPAT:
        raise ValueError(f"compat = {compat!r}: use one of: {', '.join(COMPAT)}")
    judged = _Judging(objects, _remembering(colours), position_threshold, COMPAT[compat])
    groups: list[Sequence[FoundObject] | None] = []
    terms: list[float] = []
    reasons: list[str] = []
    for clause in task.include:
        result = judged.clause(clause, groups)
        terms += result.terms
        reasons += result.reasons
        groups.append(None if result.reasons else objects.get(clause.label, ()))
    excess = _excluded(task, objects)
    if COMPAT[compat].strict_excludes:
        reasons += excess
    partial = sum(terms) / len(terms)
    return Verdict(partial, float(not reasons), float(not excess and judged.official(task)), tuple(reasons))


@dataclass(frozen=True, slots=True)
class _Compat:
    violated: tuple[float, ...]  # the terms of a position that is wrong
    strict_excludes: bool


COMPAT: Mapping[str, _Compat] = {"none": _Compat((0.0,), True), "flow_grpo": _Compat((0.0, 1.0), False)}


@dataclass(frozen=True, slots=True)
class _Terms:
    terms: tuple[float, ...]
    reasons: tuple[str, ...] = ()  # empty if all is right


@dataclass(frozen=True, slots=True)
class _Judging:
    objects: Objects
    colours: ColourNamer
    position_threshold: float
    compat: _Compat

    def clause(self, clause: Clause, groups: Sequence[Sequence[FoundObject] | None]) -> _Terms:
        """The graded terms of a clause: its count, and where that is right its colour, and then its position."""
        found = self.objects.get(clause.label, ())
        terms = (1.0 - abs(clause.count - len(found)) / clause.count,)
        if len(found) != clause.count:
            more = (0.0,) if clause.colour or clause.position else ()
            return _Terms(terms + more, (f"{clause.count} {clause.label} wanted, {len(found)} found",))
        if clause.colour:
            right = list(self.colours(clause.label, found)).count(clause.colour)
            terms += (1.0 - abs(clause.count - right) / clause.count,)
            if right != clause.count:
                return _Terms(terms, (f"{clause.count} {clause.colour} {clause.label} wanted, {right} found",))
        if clause.position is None:
            return _Terms(terms)
        relation, target = clause.position
        others = groups[target]
        if others is None:
            return _Terms((*terms, 0.0), (f"nothing right for {clause.label} to be {relation}",))
        if not self._all_placed(found, others, relation):
            return _Terms(terms + self.compat.violated, (f"{clause.label} is not {relation} it",))
        return _Terms((*terms, 1.0))

    def official(self, task: Task) -> bool:
        """Whether the surest objects, as many as asked for, are right; further ones do not count."""
        groups: list[Sequence[FoundObject] | None] = []
        for clause in task.include:
            found = self.objects.get(clause.label, ())[: clause.count]
            groups.append(found if self._official(clause, found, groups) else None)
        return None not in groups

    def _official(
        self, clause: Clause, found: Sequence[FoundObject], groups: Sequence[Sequence[FoundObject] | None]
    ) -> bool:
        if len(found) < clause.count:
            return False
        if clause.colour and list(self.colours(clause.label, found)).count(clause.colour) < clause.count:
            return False
        if clause.position is None:
            return True
        relation, target = clause.position
        others = groups[target]
        return others is not None and self._all_placed(found, others, relation)

    def _all_placed(self, found: Sequence[FoundObject], others: Sequence[FoundObject], relation: str) -> bool:
        return all(
            relation in relations(thing.box, other.box, position_threshold=self.position_threshold)
            for thing in found
            for other in others
        )


def _excluded(task: Task, objects: Objects) -> list[str]:
    return [
        f"fewer than {clause.count} {clause.label} wanted, {len(objects.get(clause.label, ()))} found"
        for clause in task.exclude
        if len(objects.get(clause.label, ())) >= clause.count
    ]


def _remembering(colours: ColourNamer) -> ColourNamer:
    """Ask once for the same objects: both ways of judging do."""
    known: dict[tuple[str, int], Sequence[str]] = {}

    def named(label: str, found: Sequence[FoundObject]) -> Sequence[str]:
        key = (label, len(found))  # always the surest so many
        if key not in known:
            known[key] = colours(label, found)
        return known[key]

    return named
