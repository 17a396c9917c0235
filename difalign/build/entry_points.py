"""Rewards of other installed packages, by the entry point group ``difalign.rewards``.

A package declares them in its ``pyproject.toml``::

    [project.entry-points."difalign.rewards"]
    brightness = "my_package.rewards:Brightness"   # a class, or a function that scores
    sharpness = "my_package.rewards:CARD"          # or the path of a card
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from difalign.build.targets import resolve_target
from difalign.core.errors import ConfigError

GROUP = "difalign.rewards"
_CALLED_WITH = ("self", "media", "prompts", "metadata", "sigma")  # of a function that scores; no options
_PLAIN = (str, int, float, bool, type(None))


def entry_point_names() -> tuple[str, ...]:
    """The names of all rewards that other packages declare, sorted; none of them is imported."""
    return tuple(sorted({_normal(point.name) for point in metadata.entry_points(group=GROUP)}))


def entry_point_card(name: str) -> Path | Mapping[str, object] | None:
    """What a package declares under ``name``: the path of a card, or the content of one; None where nobody does.

    The content is read off the object: options are the parameters that have plain defaults, ``differentiable`` and
    ``groupwise`` its attributes, the summary its docstring's first line, the licence its package's.

    Raises:
        ConfigError: if two packages declare the name, or what is declared does not exist or is no reward.
    """
    points = [point for point in metadata.entry_points(group=GROUP) if _normal(point.name) == _normal(name)]
    if not points:
        return None
    if len({point.value for point in points}) > 1:
        owners = ", ".join(_owner(point) for point in points)
        raise ConfigError(f"{name!r} is declared by several packages ({owners}); name its target in a card of your own")
    point = points[0]
    source = f"entry point {name!r} of {_owner(point)}"
    try:
        thing = resolve_target(point.value)
    except ImportError as error:
        raise ConfigError(f"{source}: cannot be imported ({error})") from None
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None
    if isinstance(thing, (str, os.PathLike)):
        return _card_file(Path(thing), source)
    if not callable(thing):
        raise ConfigError(f"{source}: is {type(thing).__name__}; must be a class, a function or the path of a card")
    return _content(_normal(name), point, thing)


def _content(name: str, point: metadata.EntryPoint, thing: Any) -> dict[str, object]:
    parameters = inspect.signature(thing).parameters.values()
    options = {
        parameter.name: parameter.default
        for parameter in parameters
        if parameter.name not in (*_CALLED_WITH, "device") and isinstance(parameter.default, _PLAIN)
    }
    documented = (inspect.getdoc(thing) or "").strip().splitlines()
    return {
        "name": name,
        "summary": documented[0] if documented else f"{point.value} of {_owner(point)}",
        "target": point.value,
        "licence": _licence(point),
        "options": options,
        "on_device": any(parameter.name == "device" for parameter in parameters),
        "differentiable": bool(getattr(thing, "differentiable", False)),
        "groupwise": bool(getattr(thing, "groupwise", False)),
        "needs": list(getattr(thing, "needs", ())),
    }


def _card_file(path: Path, source: str) -> Path:
    if not path.is_absolute() or not path.is_file():
        raise ConfigError(f"{source}: names the card {path}; it must be an absolute path of a file that exists")
    return path


def _licence(point: metadata.EntryPoint) -> str:
    stated: Any = point.dist.metadata if point.dist is not None else {}
    return stated.get("License-Expression") or stated.get("License") or "unknown"


def _owner(point: metadata.EntryPoint) -> str:
    return point.dist.name if point.dist is not None else point.value


def _normal(name: str) -> str:
    return name.replace("_", "-")
