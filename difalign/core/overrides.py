"""From YAML and ``key.sub=value`` to a checked RunConfig."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from difalign.core.config import RunConfig
from difalign.core.config_errors import checked
from difalign.core.config_yaml import parse_yaml, read_yaml
from difalign.core.errors import ConfigError

Tree: TypeAlias = dict[str, object]

_UNIONS = (("sampling", "plan"),)  # a new ``kind`` here drops the options of the old one
_REMOVABLE = ("rewards",)  # ``rewards.NAME=null`` removes an entry that a file defines


def load_config(path: Path | None, overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration of ``path`` (or the defaults) with ``overrides`` applied, checked.

    A file may name one other file as its ``base``, relative to itself; the base may not name another. A run that is
    given no name is called after its file.

    Raises:
        ConfigError: naming every problem found, with its key, its value and what is allowed.
    """
    tree = read_tree(path) if path is not None else {}
    tree = merge(tree, parse_overrides(overrides))
    if path is None:
        return checked(RunConfig, tree, source="settings")
    tree.setdefault("name", path.stem)
    return checked(RunConfig, tree, source=f"{path} with settings" if overrides else str(path))


def parse_overrides(overrides: Sequence[str]) -> Tree:
    """``["a.b=1", "c=[x, y]"]`` as a nested mapping; values are YAML.

    Raises:
        ConfigError: for text without ``=``, an empty key, a key given twice or a value that is not YAML.
    """
    tree: Tree = {}
    given: dict[str, str] = {}
    for text in overrides:
        key, value = _parse_override(text)
        clash = next((k for k in given if k == key or k.startswith(f"{key}.") or key.startswith(f"{k}.")), None)
        if clash is not None:
            raise ConfigError(f"{text!r} and {given[clash]!r} set the same key; give one of them")
        given[key] = text
        _insert(tree, key.split("."), value)
    return tree


def merge(lower: Mapping[str, object], upper: Mapping[str, object], path: tuple[str, ...] = ()) -> Tree:
    """``upper`` laid over ``lower``: mappings merge key by key, everything else is replaced."""
    if path in _UNIONS and "kind" in upper and upper["kind"] != lower.get("kind"):
        return dict(upper)
    merged = dict(lower)
    for key, value in upper.items():
        below = merged.get(key)
        if value is None and path == _REMOVABLE and key in merged:
            del merged[key]
        elif isinstance(below, Mapping) and isinstance(value, Mapping):
            merged[key] = merge(below, value, (*path, key))
        else:
            merged[key] = value
    return merged


def read_tree(path: Path) -> Tree:
    """What a file says, laid over what its ``base`` says; nothing is filled in or checked.

    Raises:
        ConfigError: if a file is missing or no YAML mapping, or the base has a base itself.
    """
    tree = _read_mapping(path)
    base = tree.pop("base", None)
    if base is None:
        return tree
    if not isinstance(base, str) or not base:
        raise ConfigError(f"{path}: base = {base!r}: must be the path of one YAML file, relative to this one")
    base_path = path.parent / base
    try:
        base_tree = _read_mapping(base_path)
    except ConfigError as error:
        raise ConfigError(f"{path}: base = {base}: {error}") from None
    if "base" in base_tree:
        raise ConfigError(f"{base_path}: has a base itself, and only one level is read; name that base in {path}")
    return merge(base_tree, tree)


def _read_mapping(path: Path) -> Tree:
    content = read_yaml(path)
    if content is None:
        raise ConfigError(f"{path}: is empty; write at least one key, such as `pipeline: tiny-sd3`")
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: must hold `key: value` lines, not a {type(content).__name__}")
    nameless = [key for key in content if not isinstance(key, str)]
    if nameless:
        raise ConfigError(f"{path}: {nameless[0]!r} is not the name of a key; write `key: value` lines")
    return content


def _parse_override(text: str) -> tuple[str, object]:
    key, equals, value = text.partition("=")
    if text.startswith("-"):
        bare = text.lstrip("-")
        raise ConfigError(f"{text!r} is not an option; settings are written without dashes, as key.sub=value: {bare!r}")
    if not equals:
        raise ConfigError(
            f"{text!r} has no '='; settings are written key.sub=value, files are given with --config FILE"
        )
    if not all(key.split(".")):
        raise ConfigError(f"{text!r} has an empty key; settings are written key.sub=value")
    try:
        return key, parse_yaml(value, name=f"the value of {key}")
    except ConfigError as problem:
        raise ConfigError(f"{problem}; quote it, as in {key}='\"text\"'") from None


def _insert(tree: Tree, keys: Sequence[str], value: object) -> None:
    for key in keys[:-1]:
        below = tree.setdefault(key, {})
        assert isinstance(below, dict)  # keys that clash were refused
        tree = below
    tree[keys[-1]] = value
