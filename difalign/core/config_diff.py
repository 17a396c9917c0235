"""Two configurations side by side: the keys in which they differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, final


@final
class Absent:
    """Stands for the value of a key that a configuration does not have."""

    def __repr__(self) -> str:
        return "(absent)"


ABSENT: Final = Absent()


@dataclass(frozen=True, slots=True)
class Difference:
    """A dotted key and its two values, either of which may be ``ABSENT``."""

    key: str
    first: Any
    second: Any


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a nested mapping by dotted key; lists and empty mappings are values."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= {f"{key}.{below}": item for below, item in flatten(value).items()}
        else:
            flat[key] = value
    return flat


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> tuple[Difference, ...]:
    """The keys whose values differ, in the order of ``first``, then those that only ``second`` has."""
    one, two = flatten(first), flatten(second)
    keys = dict.fromkeys([*one, *two])
    pairs = [Difference(key, one.get(key, ABSENT), two.get(key, ABSENT)) for key in keys]
    return tuple(pair for pair in pairs if not _same(pair.first, pair.second))


def _same(first: object, second: object) -> bool:
    """Equal in value and type, where 1 and 1.0 are one number but 1 and true are not."""
    return first == second and isinstance(first, bool) == isinstance(second, bool)
