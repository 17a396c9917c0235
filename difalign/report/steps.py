"""Charts of the single steps of a chain, noisiest on the left, and what they say in a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from difalign.report.chart import Axis, Chart, Tick, chart_over
from difalign.report.diagnostics import Diagnostics
from difalign.report.series import Panel, Series

_LABELS = 6  # on the axis
_CLOSE = 1e-6  # weights that differ less are one


@dataclass(frozen=True, slots=True)
class _StepPanel:
    """A panel and the fields of ``StepSignal`` that it shows, each with what its curve is called."""

    panel: Panel
    curves: tuple[tuple[str, str], ...]


_SPREAD = _StepPanel(
    Panel("Spread of the reward", (), "Standard deviation: what the choice made at this step decides."),
    (("reward_std", "within groups"), ("seed_reward_std", "within start noises")),
)
_RAW = _StepPanel(Panel("Gradient norm", (), "Of the step's part of the policy gradient."), (("gradient_norm", ""),))
_BOTH = _StepPanel(
    Panel("Gradient norm", (), "Of the step's part of the policy gradient, without its step weight and with it."),
    (("gradient_norm", "unweighted"), ("weighted_gradient_norm", "weighted")),
)
_CLIPPED = _StepPanel(
    Panel("Clip fraction", (), "Share of ratios outside the clip range, after the first update."),
    (("clip_fraction", ""),),
)
_RATIOS = _StepPanel(
    Panel("Spread of the ratio", (), "Standard deviation of new over old density, after the first update."),
    (("ratio_std", ""),),
)
_NOISE = _StepPanel(
    Panel("Noise and weight", (), "Standard deviation of the added noise; weight of the step in the policy loss."),
    (("std", "noise"), ("weight", "weight")),
)


def step_charts(seen: Sequence[Diagnostics]) -> list[Chart]:
    """The charts of the first and the last rollout that was looked at; those without any value are left out."""
    shown = [item for item in (*seen[:1], *seen[1:][-1:]) if item.steps]
    if not shown:
        return []
    weighted = any(abs(step.weight - 1.0) > _CLOSE for item in shown for step in item.steps)
    axis = _step_axis(shown)
    sigma = {step.step: step.sigma for item in shown for step in item.steps}
    charts = []
    for panel in (_SPREAD, _BOTH if weighted else _RAW, _CLIPPED, _RATIOS):
        if series := _series(panel, shown):
            charts.append(_chart(panel.panel, series, axis, sigma))
    charts.append(_chart(_NOISE.panel, _series(_NOISE, shown[-1:]), axis, sigma))
    return charts


def signal_sentence(seen: Diagnostics) -> str:
    """How the first and the last trained step compare; empty where there is only one."""
    if len(seen.steps) < 2:
        return ""
    first, last = seen.steps[0], seen.steps[-1]
    sentences = []
    forked = first.seed_reward_std is not None and last.seed_reward_std is not None
    spread = (first.seed_reward_std, last.seed_reward_std) if forked else (first.reward_std, last.reward_std)
    if spread[0] is not None and spread[1] is not None:
        among = "among the samples of one start noise" if forked else "within groups"
        sentences.append(
            f"Rewards {among} spread by {spread[0]:.2g} at σ {first.sigma:.2f}, the first trained step, and by "
            f"{spread[1]:.2g} at σ {last.sigma:.2f}, the last."
        )
    if first.gradient_norm and last.gradient_norm and first.weighted_gradient_norm:
        weighted = (last.weighted_gradient_norm or 0.0) / first.weighted_gradient_norm
        raw = f"The gradient of the last is {last.gradient_norm / first.gradient_norm:.2g} times that of the first"
        same = abs(first.weight - last.weight) <= _CLOSE
        sentences.append(f"{raw}." if same else f"{raw}, {weighted:.2g} times with the step weights.")
    return " ".join(sentences)


def _series(panel: _StepPanel, shown: Sequence[Diagnostics]) -> list[Series]:
    """One a field and rollout, of the steps that have a value."""
    series = []
    for field, name in panel.curves:
        for item in shown:
            values = [(step.step, getattr(step, field)) for step in item.steps]
            points = np.array([pair for pair in values if pair[1] is not None], dtype=np.float64).reshape(-1, 2)
            if len(points):
                rollout = f"rollout {item.rollout}" if len(shown) > 1 else ""
                label = ", ".join(part for part in (name, rollout) if part)
                series.append(Series(label, points[:, 0], points[:, 1]))
    return series


def _chart(panel: Panel, series: Sequence[Series], axis: Axis, sigma: dict[int, float]) -> Chart:
    chart = chart_over(
        panel, series, axis, marks=True, position=lambda step: f"σ {sigma[round(step)]:.3g}", over="σ, noisiest first"
    )
    # The legend of a chart over rollouts ends with the latest value; here there is none.
    curves = tuple(replace(curve, last="") for curve in chart.curves)
    if len(curves) == 1:
        curves = (replace(curves[0], name=series[0].name or "value"),)
    return replace(chart, curves=curves)


def _step_axis(shown: Sequence[Diagnostics]) -> Axis:
    """Steps evenly spaced: most levels of a shifted grid crowd together near 1."""
    sigma = {step.step: step.sigma for item in shown for step in item.steps}
    low, high = min(sigma) - 0.25, max(sigma) + 0.25
    steps = sorted(sigma)
    every = -(-len(steps) // _LABELS)
    ticks = tuple(
        Tick(100.0 * (step - low) / (high - low), f"{'σ ' if step == steps[0] else ''}{sigma[step]:.2f}")
        for step in steps[::every]
    )
    return Axis(low, high, False, ticks)
