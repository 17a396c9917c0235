"""No folder of tests is passed over: pytest leaves out some names, such as build, unless told otherwise."""

from __future__ import annotations

import pytest

from tests.house.repository import ROOT


def test_every_folder_of_tests_is_entered(request: pytest.FixtureRequest):
    skipped = set(request.config.getini("norecursedirs"))
    folders = {path.parent.name for path in (ROOT / "tests").rglob("test_*.py")}
    assert "build" in folders
    assert not folders & skipped
