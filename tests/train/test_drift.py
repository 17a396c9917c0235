"""Alarms of drift: each fault gives its own, once while it lasts; figures of a healthy run give none."""

from __future__ import annotations

import json
from typing import Any

import pytest

from difalign.report.alarms import Alarm
from difalign.report.records import Evaluation, SampleRecord
from difalign.train.alarms import Alarms
from difalign.train.drift import DriftWatch
from tests.train.toy_run import toy_config


def watch(**guards: Any) -> tuple[DriftWatch, Alarms]:
    alarms = Alarms()
    return DriftWatch(toy_config(guards=guards), alarms), alarms


def row(index: int, **figures: float) -> dict[str, float]:
    healthy = {"reward": 0.1 * index, "kl": 0.01, "diversity": 0.2, "zero_variance_groups": 0.1}
    return {"rollout": index // 2, "update": index, **healthy, **figures}


def evaluation(rollout: int, score: float, *, prompts: int = 20) -> Evaluation:
    """Every prompt scores alike, but for a small spread."""
    spread = [0.01 * ((7 * n) % 5 - 2) for n in range(prompts)]
    records = [SampleRecord(f"p{n}", "", 0, {"total": score + spread[n]}, n) for n in range(prompts)]
    return Evaluation(rollout, "training", tuple(records))


def names(alarms: Alarms) -> list[str]:
    return [alarm.name for alarm in alarms.given]


def feed(drift: DriftWatch, figures: list[dict[str, float]]) -> None:
    for index, figure in enumerate(figures):
        drift.row(row(index, **figure))


def test_healthy_figures_give_no_alarm() -> None:
    drift, alarms = watch()
    drift.evaluation(evaluation(0, 0.2), update=0)
    feed(drift, [{} for _ in range(40)])
    for rollout, score in ((5, 0.25), (10, 0.26), (15, 0.3)):
        drift.evaluation(evaluation(rollout, score), update=rollout)
    drift.evaluation(evaluation(20, 0.3), update=20)
    assert names(alarms) == []
    assert drift.best is not None
    assert drift.best.rollout == 15  # of equals, the first


def test_rewards_without_spread_are_said_once_while_they_last() -> None:
    drift, alarms = watch()
    feed(drift, [{"zero_variance_groups": share} for share in (0.9, 1.0, 1.0, 0.5, 1.0)])
    assert [(alarm.name, alarm.update) for alarm in alarms.given] == [("no_reward_spread", 1), ("no_reward_spread", 4)]
    assert "scored alike" in alarms.given[0].seen
    assert "samples_per_prompt" in alarms.given[0].remedy


def test_kl_is_watched_in_the_mean() -> None:
    drift, alarms = watch(max_kl=0.1)
    feed(drift, [{"kl": 0.3 if index == 5 else 0.01} for index in range(10)])  # one peak: mean 0.068
    assert names(alarms) == []
    feed(drift, [{"kl": 0.2} for _ in range(10)])
    (alarm,) = alarms.given
    assert alarm.name == "kl_drift"
    assert alarm.value is not None
    assert alarm.value > alarm.limit == 0.1
    assert "objective.kl.beta" in alarm.remedy


def test_kl_that_is_not_measured_or_not_bounded_is_not_watched() -> None:
    for guards, figures in (({"max_kl": None}, {"kl": 9.0}), ({}, {})):
        drift, alarms = watch(**guards)
        for index in range(5):
            values = row(index, **figures)
            if not figures:
                del values["kl"]
            drift.row(values)
        assert names(alarms) == []


def test_diversity_is_compared_with_the_start() -> None:
    drift, alarms = watch()
    feed(drift, [{"diversity": value} for value in (0.2, 0.22, 0.18, 0.15, 0.12, 0.11, 0.11, 0.11)])
    assert names(alarms) == []  # 0.1 is half of the start
    feed(drift, [{"diversity": 0.05} for _ in range(8)])
    (alarm,) = alarms.given
    assert alarm.name == "diversity_drift"
    assert alarm.limit == pytest.approx(0.1)


@pytest.mark.parametrize(("slope", "trend"), [(0.1, "while the training reward rises"), (-0.1, "does not rise")])
def test_a_held_out_score_that_falls_beyond_its_interval(slope: float, trend: str) -> None:
    drift, alarms = watch()
    drift.evaluation(evaluation(0, 0.2), update=0)
    feed(drift, [{"reward": slope * index} for index in range(4)])
    drift.evaluation(evaluation(2, 0.4), update=4)
    feed(drift, [{"reward": slope * (4 + index)} for index in range(4)])
    drift.evaluation(evaluation(4, 0.3), update=8)
    (alarm,) = alarms.given
    assert (alarm.name, alarm.rollout, alarm.update) == ("heldout_drift", 4, 8)
    assert trend in alarm.seen
    assert "0.1000 below the 0.4000 after 2 rollouts" in alarm.seen
    drift.evaluation(evaluation(6, 0.3), update=12)
    assert len(alarms.given) == 1


def test_a_fall_within_the_interval_is_none() -> None:
    drift, alarms = watch()
    drift.evaluation(evaluation(0, 0.3), update=0)
    noisy = [SampleRecord(f"p{n}", "", 0, {"total": 0.29 + 0.5 * (-1) ** n}, n) for n in range(20)]
    drift.evaluation(Evaluation(1, "training", tuple(noisy)), update=1)
    assert names(alarms) == []


@pytest.mark.parametrize("guards", [{"enabled": False}, {"heldout": False, "max_kl": None, "min_diversity": None}])
def test_what_is_switched_off_is_not_watched(guards: dict[str, Any]) -> None:
    drift, alarms = watch(**guards)
    drift.evaluation(evaluation(0, 0.4), update=0)
    feed(drift, [{"kl": 9.0, "diversity": 1.0 / (1 + index) ** 2} for index in range(20)])
    drift.evaluation(evaluation(10, 0.1), update=20)
    assert names(alarms) == []


def test_a_watch_that_is_restored_goes_on_as_it_was() -> None:
    """Interrupted anywhere, it gives the same alarms: none is lost and none is repeated."""
    figures = [{"kl": 0.02 * index, "diversity": 0.3 - 0.015 * index} for index in range(20)]
    scores = [0.2, 0.5, 0.3, 0.45, 0.2]

    def run(interruption: int | None) -> tuple[Alarm, ...]:
        drift, alarms = watch()
        for index, figure in enumerate(figures):
            if index == interruption:
                state, best = json.loads(json.dumps(drift.state())), drift.best
                drift = DriftWatch(toy_config(), alarms)
                drift.restore(state, best=best)
            if index % 4 == 0:
                drift.evaluation(evaluation(index // 2, scores[index // 4]), update=index)
            drift.row(row(index, **figure))
        return alarms.given

    expected = run(None)
    assert {alarm.name for alarm in expected} == {"kl_drift", "diversity_drift", "heldout_drift"}
    for interruption in range(1, 20):
        assert run(interruption) == expected
