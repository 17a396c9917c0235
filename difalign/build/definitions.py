"""Where the definition folders are: at the root of a checkout, or inside an installed package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from difalign.core.config_errors import nearest
from difalign.core.errors import ConfigError
from difalign.core.user_path import user_path

_PACKAGE = Path(__file__).resolve().parents[1]


def definition_roots() -> tuple[Path, ...]:
    """Folders that hold ``pipelines``, ``reward_models``, ``configs`` and ``samples``: the checkout, the wheel's."""
    checkout = _PACKAGE.parent
    roots = [checkout] if (checkout / "pyproject.toml").is_file() else []
    return (*roots, _PACKAGE / "_shipped")


def find_shipped(relative: str | Path, roots: Sequence[Path] | None = None) -> Path | None:
    """The first existing ``ROOT/relative``, or None."""
    candidates = (root / relative for root in (definition_roots() if roots is None else roots))
    return next((path for path in candidates if path.exists()), None)


def find_file(name: str) -> Path:
    """A file named by a user: as it stands, else among what is shipped; as it stands where neither exists."""
    path = user_path(name)
    if path.exists() or path.is_absolute():
        return path
    return find_shipped(path) or path


def is_path(name: str) -> bool:
    """Whether a name can only be meant as a path: it has a slash or the suffix of a YAML file."""
    return "/" in name or "\\" in name or name.endswith((".yaml", ".yml"))


def known_names(folder: str, roots: Sequence[Path] | None = None) -> tuple[str, ...]:
    """The names of the definitions in a folder: their file names with dashes for underscores, sorted."""
    roots = definition_roots() if roots is None else roots
    return tuple(sorted({_name_of(path) for root in roots for path in (root / folder).glob("*.yaml")}))


def find_definition(folder: str, name: str, roots: Sequence[Path] | None = None) -> Path:
    """The YAML file that defines ``name``: an explicit path, else the name looked up in the definition folders.

    Raises:
        ConfigError: naming the nearest name and those that are known.
    """
    if is_path(name):
        explicit = user_path(name)
        if explicit.is_file():
            return explicit
        found = find_shipped(explicit, roots)
        if found is not None and found.is_file():
            return found
        raise ConfigError(
            f"{name}: no such file; give an existing path, or one of: {_list(known_names(folder, roots))}"
        )
    for root in definition_roots() if roots is None else roots:
        found = next((path for path in (root / folder).glob("*.yaml") if _name_of(path) == _normal(name)), None)
        if found is not None:
            return found
    known = known_names(folder, roots)
    close = nearest(name, known)
    hint = f"did you mean {close!r}? " if close is not None else ""
    raise ConfigError(f"{name!r} is unknown; {hint}known: {_list(known)}; or give the path of a YAML file")


def _name_of(path: Path) -> str:
    return _normal(path.stem)


def _normal(name: str) -> str:
    return name.replace("_", "-")


def _list(names: Sequence[str]) -> str:
    return ", ".join(names) if names else "none"
