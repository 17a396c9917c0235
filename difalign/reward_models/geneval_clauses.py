"""What a GenEval prompt asks for: classes, counts, colours and positions, as its metadata says.

The format is GenEval's (Ghosh et al. 2023, arXiv 2310.11513). Nothing heavy is imported here, so that prompt files can
be checked first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
RELATIONS = ("left of", "right of", "above", "below")
# COCO's eighty classes in its order; GenEval has its own words for mouse, remote and keyboard.
_NAMES = (
    "person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,stop sign,parking meter,"
    "bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,backpack,umbrella,handbag,tie,suitcase,frisbee,skis,"
    "snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,tennis racket,bottle,wine glass,cup,"
    "fork,knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,couch,"
    "potted plant,bed,dining table,toilet,tv,laptop,computer mouse,tv remote,computer keyboard,cell phone,microwave,"
    "oven,toaster,sink,refrigerator,book,clock,vase,scissors,teddy bear,hair drier,toothbrush"
)
CLASSES = tuple(_NAMES.split(","))
_KEYS = {"class", "count", "color", "position"}


@dataclass(frozen=True, slots=True)
class Clause:
    """``count`` things of a class, all of one colour and all in one relation to those of an earlier clause."""

    label: str
    count: int
    colour: str | None = None
    position: tuple[str, int] | None = None  # relation, index of the clause it is to


@dataclass(frozen=True, slots=True)
class Task:
    """What a picture must hold, and what it must not: ``count`` or more of an excluded class."""

    tag: str
    include: tuple[Clause, ...]
    exclude: tuple[Clause, ...] = ()

    @property
    def kind(self) -> str:
        """The category under which the prompt is reported."""
        return self.tag


def read_task(prompt: str, metadata: Mapping[str, object] | None = None) -> Task:
    """The task that a prompt's metadata describes: ``tag``, ``include`` and perhaps ``exclude``.

    Raises:
        ValueError: naming the prompt and what is missing or unknown.
    """
    said = metadata or {}
    try:
        tag = said.get("tag")
        if not isinstance(tag, str) or not tag:
            raise ValueError(f"tag = {tag!r}: must be text such as counting")
        include = _clauses("include", said.get("include"))
        if not include:
            raise ValueError("include = []: must name at least one object")
        return Task(tag, include, _clauses("exclude", said.get("exclude", [])))
    except ValueError as error:
        raise ValueError(
            f"{prompt!r}: {error}; give the prompt the metadata of GenEval, as in samples/prompts/objects_train.jsonl"
        ) from None


def _clauses(key: str, said: object) -> tuple[Clause, ...]:
    if not isinstance(said, Sequence) or isinstance(said, str):
        raise ValueError(f"{key} = {said!r}: must be a list of objects")
    return tuple(_clause(f"{key}[{place}]", entry, place) for place, entry in enumerate(said))


def _clause(key: str, said: object, place: int) -> Clause:
    if not isinstance(said, Mapping) or not said.keys() <= _KEYS:
        raise ValueError(f"{key} = {said!r}: must be an object with class, count and perhaps color, position")
    label, count, colour = said.get("class"), said.get("count"), said.get("color")
    if label not in CLASSES:
        raise ValueError(f"{key}.class = {label!r}: is none of the 80 classes that the detector knows")
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise ValueError(f"{key}.count = {count!r}: must be a whole number from 1")
    if colour is not None and colour not in COLOURS:
        raise ValueError(f"{key}.color = {colour!r}: must be one of {', '.join(COLOURS)}")
    return Clause(cast("str", label), count, cast("str | None", colour), _position(key, said.get("position"), place))


def _position(key: str, said: object, place: int) -> tuple[str, int] | None:
    if said is None:
        return None
    match said:
        case [str(relation), int(target)] if relation in RELATIONS and 0 <= target < place:
            return relation, target
    raise ValueError(
        f"{key}.position = {said!r}: must be [relation, index of an earlier object]; relations: {', '.join(RELATIONS)}"
    )
