"""The run that resumed ones are compared with."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.train.cut_short import config_of
from tests.train.small_runs import run_toy


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six rollouts without a break, evaluated after every second."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    run_toy(config_of(folder, evaluation={"every": 2}))
    return folder
