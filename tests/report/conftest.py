"""Fixtures of the report's tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.report.fake_run import FakeRun, fake_run_in


@pytest.fixture
def fake_run(tmp_path: Path) -> FakeRun:
    """Makes run folders with made-up numbers, below the test's own folder."""
    return fake_run_in(tmp_path)
