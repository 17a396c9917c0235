"""Which versions of which libraries difalign supports, read from where they are declared."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from packaging.requirements import Requirement
    from packaging.version import Version

_PROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"
_DISTRIBUTION = "difalign"
_TORCHVISION_MINOR_AHEAD = 15  # torchvision 0.(N + 15) was built for torch 2.N, from 2.0 to 2.13
_OPEN_ENDED_TORCH = 14  # from torch 2.14 on, torchvision 0.29 declares torch>=2.14 and runs with later ones as well


@dataclass(frozen=True, slots=True)
class Library:
    """A supported range, and what is installed."""

    name: str
    supported: str  # such as ">=2.11"; empty = any
    installed: str | None
    extra: str | None  # the extra that brings it; None = always needed

    @property
    def fits(self) -> bool:
        """Whether something is installed and in the range."""
        return self.installed is not None and _within(self.installed, self.supported)


def supported_libraries(project: Path = _PROJECT) -> tuple[Library, ...]:
    """Every declared dependency with what is installed: those always needed first, then those of extras.

    A checkout's pyproject.toml is read where there is one: an editable installation remembers an older one.
    """
    from packaging.requirements import Requirement

    if project.is_file():
        table = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
        declared = [(Requirement(text), None) for text in table["dependencies"]]
        for extra, texts in table.get("optional-dependencies", {}).items():
            declared += [(Requirement(text), extra) for text in texts]
    else:
        declared = [_split_extra(Requirement(text)) for text in metadata.requires(_DISTRIBUTION) or ()]
    return tuple(
        Library(requirement.name, str(requirement.specifier), installed_version(requirement.name), extra)
        for requirement, extra in sorted(declared, key=lambda pair: pair[1] is not None)
    )


def installed_version(name: str) -> str | None:
    """The version of an installed distribution, or None; nothing is imported."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def torchvision_mismatch(torch: str, torchvision: str, *, requires: list[str] | None = None) -> str | None:
    """Why a torchvision does not belong to a torch, by what it declares; None if it does.

    Args:
        torch: its version.
        torchvision: its version.
        requires: what torchvision declares; read from its metadata by default.
    """
    from packaging.requirements import Requirement

    declared = metadata.requires("torchvision") or [] if requires is None else requires
    wanted = next((found for text in declared if (found := Requirement(text)).name == "torch"), None)
    if wanted is None or _within(torch, str(wanted.specifier)):
        return None
    return f"torchvision {torchvision} was made for torch{wanted.specifier}, and torch {torch} is installed"


def matching_torchvision(torch: str) -> str | None:
    """The torchvision that goes with a torch, as pip takes it; None for a torch of another numbering."""
    release = _version(torch).release
    major, minor = release[0], release[1] if len(release) > 1 else 0
    if major != 2:
        return None
    if minor >= _OPEN_ENDED_TORCH:
        return f"torchvision>=0.{_OPEN_ENDED_TORCH + _TORCHVISION_MINOR_AHEAD}"
    return f"torchvision==0.{minor + _TORCHVISION_MINOR_AHEAD}.*"


def _split_extra(requirement: Requirement) -> tuple[Requirement, str | None]:
    """An installed package says ``; extra == "name"`` behind a dependency of an extra."""
    marker = str(requirement.marker or "")
    _, found, quoted = marker.partition("extra == ")
    return requirement, quoted.strip("\"' ") if found else None


def _within(version: str, supported: str) -> bool:
    from packaging.specifiers import SpecifierSet

    return SpecifierSet(supported).contains(_version(version), prereleases=True)


def _version(text: str) -> Version:
    from packaging.version import Version

    return Version(Version(text).public)  # without a local part such as +cu126
