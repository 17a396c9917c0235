"""All processes take part in the same exchanges, in the same order, whatever each of them has to do."""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from difalign.report.diagnostics import diagnostics_from_json
from tests.train.gloo_worker import EXCHANGES, Patchy, job
from tests.train.launched import run, said
from tests.train.small_runs import rows_of, run_toy, toy_run_config, weights_of

pytestmark = [pytest.mark.multiproc]

# Three prompts an update for two processes; the reward tells two of eight prompts apart, so that some updates have rows
# on one process only and some on none.
KNOWN = ("0.00", "0.05")
SECTIONS: dict[str, Any] = {
    "sampling": {"prompts_per_update": 3},
    "training": {
        "rollouts": 4,
        "updates_per_rollout": 2,
        "ema": {"enabled": True, "every": 1},
        "checkpoint": {"every": 2},
    },
    "evaluation": {"every": 2},
    "diagnostics": {"every": 3},
}


def backwards(calls: list[str]) -> list[int]:
    """Backward passes between two exchanges."""
    marks = [-1, *(index for index, name in enumerate(calls) if name != "backward"), len(calls)]
    return [second - first - 1 for first, second in pairwise(marks)]


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("together") / "run"
    logs = folder.with_name("logs")
    assert run(2, job(folder, SECTIONS, known=KNOWN, noted=True), logs=logs) == [0, 0], "\n".join(said(logs))
    return folder


def test_exchanges_are_the_same_on_both(together: Path) -> None:
    calls = [json.loads(Path(f"{together}.{rank}.json").read_text()) for rank in range(2)]
    exchanged = [[name for name in of_one if name in EXCHANGES] for of_one in calls]
    assert len(exchanged[0]) > 50
    assert exchanged[0] == exchanged[1]
    assert backwards(calls[0]) != backwards(calls[1])  # while the work between them differs


def test_every_kind_of_update_was_there(together: Path) -> None:
    rows = [row["rows"] for row in rows_of(together)]
    calls = [json.loads(Path(f"{together}.{rank}.json").read_text()) for rank in range(2)]
    assert 0 in rows  # skipped by both
    assert any(rows)
    assert any((first == 0) != (second == 0) for first, second in zip(*map(backwards, calls), strict=True))


def test_the_run_is_that_of_one_process(together: Path, tmp_path: Path) -> None:
    run_toy(toy_run_config(tmp_path / "run", **SECTIONS), reward=Patchy(known=KNOWN))
    for name, value in weights_of(tmp_path / "run").items():
        torch.testing.assert_close(weights_of(together)[name], value, rtol=1e-5, atol=1e-6)
    rows = [row["rows"] for row in rows_of(tmp_path / "run")]
    assert [row["rows"] for row in rows_of(together)] == rows
    for name in ("000000.json", "000003.json"):
        one, two = (
            diagnostics_from_json(json.loads((folder / "diagnostics" / name).read_text()))
            for folder in (tmp_path / "run", together)
        )
        assert two.prompts == one.prompts
        for mine, other in zip(one.steps, two.steps, strict=True):
            told = {name: value for name, value in asdict(mine).items() if value is not None}
            assert {name: value for name, value in asdict(other).items() if value is not None}.keys() == told.keys()
            assert {name: getattr(other, name) for name in told} == pytest.approx(told, rel=1e-4, abs=1e-7)
