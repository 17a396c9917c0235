"""Supported ranges come from where they are declared, and a torchvision is held to what it says of torch."""

from __future__ import annotations

from pathlib import Path

import pytest

from difalign.build import requirements
from difalign.build.requirements import Library, matching_torchvision, supported_libraries, torchvision_mismatch

PROJECT = """
[project]
dependencies = ["numpy>=2", "no-such-thing>=1.5,<2"]
[project.optional-dependencies]
track = ["no-such-tracker>=3"]
"""


def test_ranges_of_the_project() -> None:
    libraries = {library.name: library for library in supported_libraries()}
    torch = libraries["torch"]
    assert torch.extra is None
    assert torch.fits
    assert torch.supported == ">=2.11"
    assert libraries["wandb"].extra == "track"


def test_missing_and_installed(tmp_path: Path) -> None:
    file = tmp_path / "pyproject.toml"
    file.write_text(PROJECT)
    numpy, missing, tracker = supported_libraries(file)
    assert numpy.fits
    assert (missing.installed, missing.fits, missing.supported) == (None, False, "<2,>=1.5")
    assert (tracker.name, tracker.extra) == ("no-such-tracker", "track")


def test_an_installed_package_says_it_in_its_metadata(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    declared = ["numpy>=2", 'wandb>=0.19; extra == "track"']
    monkeypatch.setattr(requirements.metadata, "requires", lambda name: declared)
    found = supported_libraries(tmp_path / "pyproject.toml")
    assert [(library.name, library.extra) for library in found] == [("numpy", None), ("wandb", "track")]


@pytest.mark.parametrize(
    ("installed", "fits"), [("2.11", True), ("2.11.1+cu126", True), ("2.12.0rc1", True), ("2.10.9", False)]
)
def test_local_parts_and_candidates_of_a_version(installed: str, fits: bool) -> None:
    assert Library("torch", ">=2.11", installed, None).fits is fits


def test_torchvision_is_held_to_what_it_declares() -> None:
    exact = ["numpy", "torch (==2.11.0)"]
    assert torchvision_mismatch("2.11.0+cpu", "0.26.0", requires=exact) is None
    said = torchvision_mismatch("2.12.0", "0.26.0", requires=exact)
    assert said == "torchvision 0.26.0 was made for torch==2.11.0, and torch 2.12.0 is installed"
    assert torchvision_mismatch("2.15.0", "0.29.2", requires=["torch (>=2.14.0)"]) is None
    assert torchvision_mismatch("2.13.0", "0.29.2", requires=["torch (>=2.14.0)"]) is not None
    assert torchvision_mismatch("2.13.0", "0.29.2", requires=[]) is None  # says nothing: the import decides


def test_the_torchvision_of_a_torch() -> None:
    assert matching_torchvision("2.0.1") == "torchvision==0.15.*"
    assert matching_torchvision("2.11.0+cu126") == "torchvision==0.26.*"
    assert matching_torchvision("2.13.0") == "torchvision==0.28.*"
    assert matching_torchvision("2.14.0") == "torchvision>=0.29"
    assert matching_torchvision("2.15.0+cpu") == "torchvision>=0.29"
    assert matching_torchvision("3.0.0") is None
