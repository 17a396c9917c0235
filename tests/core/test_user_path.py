"""A tilde is the home folder, and of nobody's home nothing is made up."""

from __future__ import annotations

from pathlib import Path

import pytest

from difalign.core.config import RunConfig
from difalign.core.user_path import user_path


def test_home(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/elsewhere/me")
    assert user_path("~/runs/a") == Path("/elsewhere/me/runs/a")
    assert user_path("runs/~a") == Path("runs/~a")
    assert user_path("~nobody-here/a") == Path("~nobody-here/a")
    assert RunConfig(output_dir="~/runs/a").run_folder == Path("/elsewhere/me/runs/a")
