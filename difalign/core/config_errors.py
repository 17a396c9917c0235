"""What is wrong with a configuration, in sentences that name the key, the value and what is allowed."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from difalign.core.errors import ConfigError, in_one_message

_Model = TypeVar("_Model", bound=BaseModel)

_LONGEST_VALUE = 60  # characters of an offending value that are shown
_SIMPLE_TYPES = {bool: "true or false", int: "an integer", float: "a number", str: "text"}
NAME_PATTERN = r"^[^/\\\s.][^/\\\s]*$"  # of what names a folder
FILE_PATTERN = r"^[^\x00]+$"
TARGET_PATTERN = r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"
_PATTERNS = {
    NAME_PATTERN: " without spaces or slashes, not beginning with a dot, not empty",
    FILE_PATTERN: ", not empty, without zero bytes",
    TARGET_PATTERN: " such as package.module:Class",
}
_BOUNDS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}


def checked(model: type[_Model], tree: Mapping[str, object], *, source: str) -> _Model:
    """``tree`` as a ``model``; ``source`` is named in the message.

    Raises:
        ConfigError: naming every problem found, each with its key, its value and what is allowed.
    """
    try:
        return model.model_validate(dict(tree))
    except ValidationError as error:
        lines: list[str] = []
        for finding in error.errors(include_url=False):
            lines += [line for line in _describe(model, finding, tree).splitlines() if line not in lines]
    raise ConfigError(in_one_message(lines, source=source))


def nearest(word: str, known: Sequence[str]) -> str | None:
    """The known word that ``word`` most resembles, or None where none is close."""
    folded = {name.lower(): name for name in known}
    found = difflib.get_close_matches(word.lower(), list(folded), n=1, cutoff=0.6)
    return folded[found[0]] if found else None


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """``did you mean X? `` or nothing, then what is known."""
    close = nearest(word, known)
    hint = f"did you mean {close!r}? " if close is not None else ""
    return f"{hint}known: {', '.join(known)}"


def key_paths(model: type[BaseModel]) -> tuple[str, ...]:
    """Every key of a configuration or card, dotted."""
    return tuple(dict.fromkeys(_paths_of(model, "")))


def _describe(model: type[BaseModel], finding: Mapping[str, Any], tree: Mapping[str, object]) -> str:
    place = _locate(model, finding["loc"])
    path = ".".join(place.keys)
    kind = finding["type"]
    if kind == "value_error":
        said = str(finding["ctx"]["error"])
        return f"{path}: {said}" if path else said
    if kind == "extra_forbidden":
        return f"{path}: unknown key; {_suggest_key(model, place.keys)}"
    if kind.startswith("union_tag"):
        return _describe_tag(path, finding, [_kind_of(member) for member in _models(place.annotation)])
    allowed = _allowed(place.annotation, place.metadata)
    if kind == "missing" and not place.in_list:
        return f"{path}: missing; must be {allowed}"
    value = _value_at(tree, place.keys)
    return f"{path} = {_show(value)}: must be {allowed}{_hint(value, place.annotation)}"


def _describe_tag(path: str, finding: Mapping[str, Any], known: Sequence[str]) -> str:
    allowed = f"must be one of {', '.join(known)}"
    if finding["type"] == "union_tag_not_found":
        return f"{path}.kind: missing; {allowed}"
    kind = finding["input"].get("kind")
    close = nearest(str(kind), known)
    return f"{path}.kind = {_show(kind)}: {allowed}" + (f"; did you mean {close!r}?" if close is not None else "")


def _suggest_key(model: type[BaseModel], keys: Sequence[str]) -> str:
    """The nearest sibling, else the nearest key of that name elsewhere, else the keys known here."""
    parent = _locate(model, keys[:-1])
    prefix = "".join(f"{key}." for key in keys[:-1])
    members = _models(parent.annotation) if parent.keys else (model,)
    owners = [_kind_of(member) for member in members if keys[-1] in member.model_fields]
    if owners:
        return f"it belongs to {prefix}kind = {' or '.join(owners)}"
    siblings = list(dict.fromkeys(name for member in members for name in member.model_fields))
    close = nearest(keys[-1], siblings)
    if close is not None:
        return f"did you mean {prefix}{close}?"
    paths = key_paths(model)
    close = nearest(keys[-1], list(dict.fromkeys(path.rsplit(".", 1)[-1] for path in paths)))
    if close is not None:
        elsewhere = [path for path in paths if path.rsplit(".", 1)[-1] == close]
        return f"did you mean {' or '.join(elsewhere[:3])}?"
    return f"known{f' in {prefix[:-1]}' if prefix else ''}: {', '.join(siblings)}"


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a finding is: the keys a user wrote to get there, and what belongs there."""

    keys: tuple[str, ...] = ()
    annotation: Any = None
    metadata: Sequence[object] = ()
    in_list: bool = False  # one item of the list at ``keys`` is meant


def _locate(model: type[BaseModel], location: Sequence[str | int]) -> _Place:
    """Follow a finding's location, leaving out the tags of unions and the indices of lists."""
    place = _Place(annotation=model)
    for part in location:
        members = _models(place.annotation)
        if isinstance(part, int):
            return replace(place, in_list=True)
        if get_origin(place.annotation) is dict:
            place = _Place((*place.keys, part), get_args(place.annotation)[1])
        elif len(members) > 1 and part in (kinds := {_kind_of(member): member for member in members}):
            place = replace(place, annotation=kinds[part])
        elif members:
            field = members[0].model_fields.get(part)
            place = _Place((*place.keys, part))
            place = replace(place, annotation=field.annotation, metadata=field.metadata) if field else place
        elif not place.keys:
            place = _Place((part,))
    return place


def _models(annotation: object) -> tuple[type[BaseModel], ...]:
    """The sections that an annotation admits: one, several for a union, or none."""
    if isinstance(annotation, type) and get_origin(annotation) is None:
        return (annotation,) if issubclass(annotation, BaseModel) else ()
    if get_origin(annotation) is Literal:
        return ()
    return tuple(model for argument in get_args(annotation) for model in _models(argument))


def _kind_of(model: type[BaseModel]) -> str:
    return get_args(model.model_fields["kind"].annotation)[0]


def _paths_of(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}"
        if get_origin(field.annotation) is not dict:
            for member in _models(field.annotation):
                yield from _paths_of(member, f"{prefix}{name}.")


def _allowed(annotation: Any, metadata: Sequence[object] = ()) -> str:
    """What an annotation admits, in words: ``an integer >= 1 or null``."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        inner = [entry for item in arguments[1:] for entry in getattr(item, "metadata", [item])]
        return _allowed(arguments[0], inner)
    if origin is Literal:
        return f"one of {', '.join(str(value) for value in arguments)}"
    if len(members := _models(annotation)) > 1:
        return f"a mapping such as {{kind: {_kind_of(members[0])}}}"
    if origin in (Union, types.UnionType):
        words = [_allowed(member) for member in arguments if member is not type(None)]
        return " or ".join([*words, "null"] if type(None) in arguments else words)
    if origin is tuple:
        number = "" if arguments[-1] is Ellipsis else f"{len(arguments)} values, each "
        return f"a list [a, b, ...] of {number}{_allowed(arguments[0])}"
    if origin is dict:
        return f"a mapping{_bounds(metadata)}, each entry {_allowed(arguments[1])}"
    if members:
        return f"a mapping with the keys {', '.join(members[0].model_fields)}"
    return _SIMPLE_TYPES[annotation] + _bounds(metadata)


def _bounds(metadata: Sequence[object]) -> str:
    found = [f"{sign} {getattr(m, name)}" for m in metadata for name, sign in _BOUNDS.items() if hasattr(m, name)]
    patterns = [pattern for m in metadata if (pattern := getattr(m, "pattern", None))]
    if patterns:
        return _PATTERNS[patterns[0]]
    if any(getattr(m, "min_length", None) for m in metadata):
        return ", not empty"
    return f" {' and '.join(found)}" if found else ""


def _value_at(tree: object, keys: Sequence[str]) -> object:
    for key in keys:
        if not isinstance(tree, Mapping):
            return tree
        tree = tree.get(key)
    return tree


def _show(value: object) -> str:
    """A value as a user would write it in YAML, shortened."""
    words = {True: "true", False: "false"}.get(value) if isinstance(value, bool) else None
    text = words or ("null" if value is None else repr(value))
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 3]}..."


def _hint(value: object, annotation: object) -> str:
    if get_origin(annotation) is Literal:
        close = nearest(str(value), [str(option) for option in get_args(annotation)])
        return f"; did you mean {close!r}?" if close is not None else ""
    return "; put it in quotes" if annotation is str and isinstance(value, (int, float)) else ""
