"""What is built holds the definitions, and nothing at the top level but the package."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.house.repository import DEFINITION_FOLDERS, ROOT


def build(target: str, into: Path) -> Path:
    """Build an archive of the checkout without isolation, so that no network is needed."""
    command = [sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", str(into)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    (archive,) = [path for path in into.iterdir() if path.suffix in {".whl", ".gz"}]
    return archive


def definitions() -> set[str]:
    """Every card and configuration of the checkout, from its root."""
    cards = [path for folder in DEFINITION_FOLDERS for path in (ROOT / folder).glob("*.yaml")]
    assert cards
    return {path.relative_to(ROOT).as_posix() for path in cards}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    with zipfile.ZipFile(build("wheel", tmp_path_factory.mktemp("wheel"))) as archive:
        return archive.namelist()


def test_wheel_ships_every_definition(wheel: list[str]):
    assert {f"difalign/_shipped/{name}" for name in definitions()} <= set(wheel)
    assert any(name.startswith("difalign/_shipped/samples/prompts/") for name in wheel)
    worker = ("samples/reward_server.py", "samples/workers/hpsv2_scorer.py", "reward_models/workers/hpsv2.yaml")
    assert {f"difalign/_shipped/{name}" for name in worker} <= set(wheel)


def test_wheel_has_one_import_package(wheel: list[str]):
    tops = {name.split("/")[0] for name in wheel}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"difalign"}
    assert "difalign/py.typed" in wheel
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in wheel)


def test_source_archive_holds_what_the_wheel_is_built_from(tmp_path: Path):
    with tarfile.open(build("sdist", tmp_path)) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert definitions() <= names
    assert {"LICENSE", "Makefile", "constraints.txt", "pyproject.toml", "difalign/py.typed"} <= names
    assert {"tests/conftest.py", "train_flow_grpo.py"} <= names
