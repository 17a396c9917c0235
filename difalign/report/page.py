"""The page about a run: one file, built from the run folder alone, that needs nothing from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from difalign.report import words
from difalign.report.alarms import count_alarms
from difalign.report.chart import IntervalMark, interval_axis, interval_mark, line_chart
from difalign.report.comparison import sample_pairs
from difalign.report.embedding import data_uri, embed
from difalign.report.images import Pair
from difalign.report.log import REPORT_FILE, write_text_atomically
from difalign.report.records import SampleRecord, spread_over_kinds
from difalign.report.rendering import render
from difalign.report.run_folder import Run, read_run
from difalign.report.series import (
    TOTALS,
    Panel,
    assign_panels,
    collect_series,
    constant_values,
    evaluation_series,
    readable,
)
from difalign.report.statistics import summarise_gain
from difalign.report.steps import signal_sentence, step_charts
from difalign.report.trees import Forest, draw_forests

if TYPE_CHECKING:
    from PIL.Image import Image

_PAIRS_IN_FRONT = 12
_SHOWN_ALARMS = 30
_KNOWN_SUMMARY = {
    *("name", "base", "tuned", "gain", "gain_ci95", "per_category", "scores", "seed", "prompts", "samples"),
    *("rollouts", "updates", "training_seconds", "alarms", *TOTALS),
}
_EVALUATION_PANEL = Panel("Held-out score", ("total",), "Mean over the held-out samples at each evaluation.")


@dataclass(frozen=True, slots=True)
class GainRow:
    """One line of a table of gains."""

    name: str
    n: str
    base: str
    tuned: str
    gain: str
    interval: str
    verdict: str
    mark: IntervalMark | None
    few: bool  # so few prompts that the interval is too narrow


@dataclass(frozen=True, slots=True)
class GainTable:
    """Gains on one common axis."""

    rows: tuple[GainRow, ...]
    zero: float  # where no change lies, in percent across


@dataclass(frozen=True, slots=True)
class Sample:
    """One picture of the page."""

    source: str  # data URI
    score: str
    details: str  # every score, for the tooltip
    crisp: bool  # enlarge without smoothing


@dataclass(frozen=True, slots=True)
class SamplePair:
    """One prompt, before and after."""

    prompt: str
    kind: str
    before: Sample
    after: Sample
    change: str  # "up", "down", "same" or "" if unknown


def write_report(folder: Path) -> Path:
    """Write ``report.html`` into a run folder, from nothing but what lies in it.

    A run that has not finished, or has crashed, gives a page about what there is.

    Raises:
        ValueError: if the folder does not exist or holds nothing that a run writes.
    """
    run = read_run(folder)
    path = run.folder / REPORT_FILE
    write_text_atomically(path, render_page(run))
    return path


def render_page(run: Run) -> str:
    """The page as HTML text."""
    return render("report.html.j2", _content(run))


def _content(run: Run) -> dict[str, Any]:
    problems = list(run.problems)
    gains = _gains(run, problems)
    pairs = _pairs(run, problems)
    front = _front(pairs)
    series = collect_series(run.metrics)
    charts = [line_chart(panel, items) for panel, items in assign_panels(series)]
    evaluations = evaluation_series(run.evaluations)
    seen = [stored.diagnostics for stored in run.diagnostics]
    if evaluations:
        charts.insert(0, line_chart(_EVALUATION_PANEL, evaluations, marks=True))
    return {
        "title": run.folder.resolve().name,
        "finished": run.summary is not None,
        "gains": gains,
        "headline": _headline(gains),
        "latest_rollout": run.latest.evaluation.rollout if run.latest else None,
        "alarms": run.alarms[:_SHOWN_ALARMS],
        "more_alarms": len(run.alarms[_SHOWN_ALARMS:]),
        "alarm_counts": ", ".join(f"{readable(n)} {count} ×" for n, count in count_alarms(run.alarms).items()),
        "facts": _facts(run, gains, {name: float(series[name].y[-1]) for name in TOTALS if name in series}),
        "kinds": _gain_table(gains.get("per_category")),
        "scores": _gain_table(gains.get("scores")),
        "pairs": front,
        "more_pairs": [pair for pair in pairs if pair not in front],
        "grids": [] if pairs else _whole_grids(run),
        "charts": charts,
        "signal": signal_sentence(seen[-1]) if seen else "",
        "step_charts": step_charts(seen),
        "forests": _forests(run, problems),
        "smoothed": any(curve.mean_path for chart in charts for curve in chart.curves),
        "not_finite": [chart.title for chart in charts if chart.not_finite],
        "extra": _extra(run.summary or {}, constant_values(series)),
        "config": run.config,
        "environment": _flat(run.environment),
        "problems": problems,
    }


def _gains(run: Run, problems: list[str]) -> Mapping[str, Any]:
    """The summary's figures; what it lacks, or all of it in a run under way, from the two evaluations."""
    computed: dict[str, Any] = {}
    if run.base and run.latest:
        try:
            computed = summarise_gain(run.base.evaluation.records, run.latest.evaluation.records, seed=0)
        except ValueError as error:
            problems.append(f"The evaluations cannot be compared: {error}.")
    return {**computed, **(run.summary or {})}


def _headline(gains: Mapping[str, Any]) -> dict[str, Any] | None:
    if "gain" not in gains:
        return None
    bounds = gains.get("gain_ci95")
    axis = interval_axis([(gains["gain"], bounds)])
    return {
        "base": words.score(gains.get("base")),
        "tuned": words.score(gains.get("tuned")),
        "gain": words.signed(gains["gain"]),
        "interval": words.interval(bounds),
        "verdict": words.verdict(bounds),
        "sentence": words.gain_sentence(gains),
        "mark": interval_mark(gains["gain"], bounds, axis),
        "zero": 100.0 * -axis.low / (axis.high - axis.low),
    }


def _facts(run: Run, gains: Mapping[str, Any], totals: Mapping[str, float]) -> list[tuple[str, str]]:
    merged = {**totals, **gains}
    rollouts = len({row["rollout"] for row in run.metrics if "rollout" in row})
    updates = sum("update" in row for row in run.metrics)
    facts = [
        ("Whole run" if "training_seconds" in merged else "Time", words.duration(merged.get("seconds"))),
        ("Training", words.duration(merged.get("training_seconds"))),
        ("Denoiser forwards", words.count(merged.get("denoiser_forwards"))),
        ("Reward calls", words.count(merged.get("reward_calls"))),
        ("Rollouts", words.count(merged.get("rollouts", rollouts or None))),
        ("Updates", words.count(merged.get("updates", updates or None))),
        ("Held-out prompts", words.count(merged.get("prompts"))),
        ("Held-out samples", words.count(merged.get("samples"))),
        ("Alarms", words.count(len(run.alarms) or None)),
        ("Seed", words.count(merged.get("seed")).replace("\u202f", "")),
    ]
    return [(name, value) for name, value in facts if value != words.MISSING]


def _gain_table(rows: object) -> GainTable | None:
    if not isinstance(rows, Mapping) or not rows:
        return None
    axis = interval_axis([(row.get("gain"), row.get("ci95")) for row in rows.values()])
    return GainTable(
        rows=tuple(
            GainRow(
                name=readable(str(name)),
                n=words.count(row.get("n")),
                base=words.score(row.get("base")),
                tuned=words.score(row.get("tuned")),
                gain=words.signed(row.get("gain")),
                interval=words.interval(row.get("ci95")),
                verdict=words.verdict(row.get("ci95")),
                mark=interval_mark(row.get("gain"), row.get("ci95"), axis),
                few=(words.finite(row.get("n")) or words.FEW_PROMPTS) < words.FEW_PROMPTS,
            )
            for name, row in rows.items()
        ),
        zero=100.0 * -axis.low / (axis.high - axis.low),
    )


def _pairs(run: Run, problems: list[str]) -> list[SamplePair]:
    if not (run.base and run.latest):
        return []
    try:
        pairs = sample_pairs(run.base, run.latest)
    except ValueError as error:
        problems.append(f"The samples cannot be shown: {error}.")
        return []
    return [_sample_pair(pair) for pair in pairs]


def _sample_pair(pair: Pair) -> SamplePair:
    before, after = (words.finite(r.scores.get("total")) for r in (pair.before_record, pair.after_record))
    change = ""
    if before is not None and after is not None:
        change = "same" if abs(after - before) < 5e-3 else ("up" if after > before else "down")
    return SamplePair(
        prompt=pair.after_record.prompt,
        kind=readable(pair.after_record.kind),
        before=_sample(pair.before, pair.before_record),
        after=_sample(pair.after, pair.after_record),
        change=change,
    )


def _sample(image: Image, record: SampleRecord) -> Sample:
    embedded = embed(image)
    return Sample(
        source=embedded.source,
        score=words.score(record.scores.get("total"), digits=2),
        details=", ".join(f"{name} {words.score(value, digits=2)}" for name, value in record.scores.items()),
        crisp=embedded.crisp,
    )


def _front(pairs: Sequence[SamplePair]) -> list[SamplePair]:
    """The pairs shown first: evenly over the kinds, whatever they scored."""
    records = [SampleRecord(pair.prompt, pair.kind, 0, {}, index) for index, pair in enumerate(pairs)]
    return [pairs[index] for index in spread_over_kinds(records, limit=_PAIRS_IN_FRONT)] if pairs else []


def _forests(run: Run, problems: list[str]) -> list[Forest]:
    """The trees of the last rollout that was looked at, then those of the first."""
    ends = [run.diagnostics[-1], run.diagnostics[0]] if len(run.diagnostics) > 1 else run.diagnostics
    forests = []
    for stored in ends:
        try:
            forests.append(draw_forests(stored))
        except ValueError as error:
            problems.append(f"The trees of rollout {stored.diagnostics.rollout} cannot be shown: {error}.")
    return [forest for forest in forests if forest.prompts]


def _whole_grids(run: Run) -> list[tuple[str, str]]:
    """(caption, data URI) of the grids, for a run whose samples cannot be paired."""
    return [
        (
            f"{stored.evaluation.label}, rollout {stored.evaluation.rollout}",
            data_uri(stored.grid.read_bytes(), "image/png"),
        )
        for stored in run.evaluations[:1] + run.evaluations[1:][-1:]
        if stored.grid is not None
    ]


def _extra(summary: Mapping[str, Any], constants: Mapping[str, float]) -> list[tuple[str, str]]:
    others = {name: value for name, value in summary.items() if name not in _KNOWN_SUMMARY}
    unchanged = [(f"{readable(name)} (throughout)", words.compact(value)) for name, value in constants.items()]
    return _flat(others) + unchanged


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested values as (name, text) rows."""
    rows: list[tuple[str, str]] = []
    for name, value in values.items():
        label = f"{prefix}{str(name).replace('_', ' ')}"
        if isinstance(value, Mapping):
            rows += _flat(value, f"{label}: ")
        elif isinstance(value, list) and all(isinstance(item, str) for item in value):
            rows.append((label, " ".join(value) or "none"))
        elif value is None:
            rows.append((label, "none"))
        elif isinstance(value, str | bool) and words.number(value) is None:
            rows.append((label, str(value)))
        else:
            rows.append((label, words.compact(value) if words.number(value) is not None else json.dumps(value)))
    return rows
