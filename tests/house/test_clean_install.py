"""A clean machine: the newest releases install together, everything imports, and the rewards give the stored values.

Needs a package index and some 6 GB; ``make check-install`` runs it, and nothing else does.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.house.repository import ROOT

pytestmark = pytest.mark.network

# Every module of the package, in one process; a module that needs an extra beyond `rewards` imports it when called.
IMPORT_ALL = """
import importlib, pkgutil, sys
import difalign
names = [found.name for found in pkgutil.walk_packages(difalign.__path__, "difalign.") if "__main__" not in found.name]
for name in names:
    importlib.import_module(name)
sys.stdout.write(f"{len(names)} modules")
"""
IMPORT_REQUIRED = """
import importlib
from difalign.build.cards import list_rewards
for module in sorted({module for found in list_rewards() for module in found.card.requires}):
    importlib.import_module(module)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A virtual environment with ``difalign[rewards]`` and nothing pinned; it is removed afterwards."""
    folder = tmp_path_factory.mktemp("clean")
    run([sys.executable, "-m", "venv", str(folder / "venv")], folder)
    binaries = folder / "venv" / "bin"
    more = shlex.split(os.environ.get("DIFALIGN_PIP_ARGS", ""))
    run([str(binaries / "pip"), "install", "--quiet", "--no-cache-dir", *more, f"{ROOT}[rewards]"], folder)
    yield binaries
    shutil.rmtree(folder)


def run(command: list[str], folder: Path) -> str:
    """What a command says, outside the checkout and without its environment; its error if it fails."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(command, cwd=folder, env=kept, capture_output=True, text=True, timeout=3600, check=False)
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_requirements_agree(installed: Path, tmp_path: Path):
    assert "No broken requirements" in run([str(installed / "pip"), "check"], tmp_path)


@pytest.mark.parametrize("code", [IMPORT_ALL, IMPORT_REQUIRED], ids=["own", "required"])
def test_everything_imports(installed: Path, tmp_path: Path, code: str):
    run([str(installed / "python"), "-W", "error::ImportWarning", "-c", code], tmp_path)


def test_rewards_give_the_stored_values(installed: Path, tmp_path: Path):
    said = run([str(installed / "difalign"), "rewards", "check"], tmp_path)
    assert " 0 failed" in said.splitlines()[-1]
    ok = {line.split(":")[0] for line in said.splitlines() if ": ok:" in line}
    assert {"verifier", "tiny-clip", "compressibility", "ocr", "image-class"} <= ok
    assert "is not installed" not in said
