"""Toy runs that are cut short and go on, and what their end is compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from difalign.core.config import RunConfig
from difalign.train.policy_gradient import PolicyGradient
from tests.train.small_runs import WEIGHTS, rows_without_clocks, run_toy, toy_run_config

EMA = {"enabled": True, "every": 1, "max_decay": 0.5}


class Stopped(Exception):
    """The end of a run that a test has cut short."""


def stop_after(patch: pytest.MonkeyPatch, rollouts: int) -> None:
    """Let no rollout begin but the first few."""
    run = PolicyGradient.run

    def limited(self: PolicyGradient, index: int, report: Any) -> list[dict[str, float]]:
        if index >= rollouts:
            raise Stopped
        return run(self, index, report)

    patch.setattr(PolicyGradient, "run", limited)


def config_of(folder: Path, **sections: Any) -> RunConfig:
    """Six rollouts with an average, a checkpoint after each."""
    training = {"rollouts": 6, "ema": EMA, "checkpoint": {"every": 1, "keep": 2}, **sections.pop("training", {})}
    return toy_run_config(folder, training=training, **sections)


def run_until(folder: Path, rollouts: int, **sections: Any) -> None:
    """The beginning of a run."""
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, rollouts)
        with pytest.raises(Stopped):
            run_toy(config_of(folder, **sections))


def assert_same_end(folder: Path, expected: Path) -> None:
    assert rows_without_clocks(folder) == rows_without_clocks(expected)
    assert (folder / WEIGHTS).read_bytes() == (expected / WEIGHTS).read_bytes()
    names = sorted(path.name for path in (expected / "evaluations").iterdir())
    assert sorted(path.name for path in (folder / "evaluations").iterdir()) == names
    for name in names:
        assert (folder / "evaluations" / name).read_bytes() == (expected / "evaluations" / name).read_bytes()
