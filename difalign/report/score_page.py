"""What scores of pictures look like: a page that needs nothing from elsewhere, and grids of the best and the worst."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from difalign.report import words
from difalign.report.chart import IntervalMark, interval_axis, interval_mark
from difalign.report.embedding import embed
from difalign.report.histogram import Histogram, histogram
from difalign.report.images import captioned_grid
from difalign.report.log import plain, write_bytes_atomically, write_text_atomically
from difalign.report.rendering import render
from difalign.report.score_summary import Comparison, ScoreSummary, compare_scores, summarise_scores
from difalign.report.score_table import ScoredPicture

if TYPE_CHECKING:
    from PIL.Image import Image

    Opener = Callable[[ScoredPicture], Image]

PAGE_FILE = "scores.html"
SUMMARY_FILE = "summary.json"
_SHOWN = 8  # of the best, and of the worst


@dataclass(frozen=True, slots=True)
class Scores:
    """All scores of one folder, or of two that are compared."""

    title: str
    pictures: Sequence[ScoredPicture]
    rewards: Sequence[str]  # whose pictures are shown; the table and the summaries hold components as well
    base_title: str = ""
    base: Sequence[ScoredPicture] = ()  # of the same prompts, row by row
    notices: Sequence[str] = field(default_factory=tuple)

    def names(self) -> tuple[str, ...]:
        """Every score: rewards, and their components."""
        return tuple(dict.fromkeys(name for picture in self.pictures for name in picture.scores))

    @property
    def size(self) -> str:
        """How many pictures of how many prompts, in words."""
        prompts = len(set(self.prompts()))
        noun = "prompt" if prompts == 1 else "prompts"
        return f"{words.count(len(self.pictures))} pictures of {words.count(prompts)} {noun}"

    def prompts(self) -> list[int]:
        """The number of each picture's prompt."""
        numbers: dict[str, int] = {}
        return [numbers.setdefault(picture.prompt, len(numbers)) for picture in self.pictures]


def column(pictures: Sequence[ScoredPicture], name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """One score of all pictures, NaN where there is none."""
    return np.array([picture.scores.get(name, np.nan) for picture in pictures], dtype=np.float64)


def summarise(scores: Scores, *, seed: int) -> dict[str, ScoreSummary]:
    """Every score's summary."""
    prompts = scores.prompts()
    return {name: summarise_scores(column(scores.pictures, name), prompts, seed=seed) for name in scores.names()}


def compare(scores: Scores, *, seed: int) -> dict[str, Comparison]:
    """Every score's comparison with the base; those without a pair of scores are left out."""
    if not scores.base:
        return {}
    prompts = scores.prompts()
    found = {
        name: compare_scores(column(scores.base, name), column(scores.pictures, name), prompts, seed=seed)
        for name in scores.names()
    }
    return {name: comparison for name, comparison in found.items() if comparison is not None}


def write_score_report(folder: Path, scores: Scores, *, seed: int, open_picture: Opener) -> Path:
    """Write the page, its figures as JSON, and PNG grids of every reward's best and worst; returns the page's path."""
    for reward in scores.rewards:
        for word, rows in _extremes(scores, reward).items():
            if rows:
                _write_grid(folder / f"{reward}_{word}.png", scores, reward, rows, open_picture)
    write_text_atomically(folder / SUMMARY_FILE, json.dumps(plain(_figures(scores, seed)), indent=2) + "\n")
    page = folder / PAGE_FILE
    write_text_atomically(page, render_scores(scores, seed=seed, open_picture=open_picture))
    return page


def render_scores(scores: Scores, *, seed: int, open_picture: Opener) -> str:
    """The page as HTML text."""
    return render("scores.html.j2", _content(scores, seed, open_picture))


def _figures(scores: Scores, seed: int) -> dict[str, Any]:
    """The same figures for programs."""
    return {
        "seed": seed,
        "scores": {name: asdict(summary) for name, summary in summarise(scores, seed=seed).items()},
        "comparison": {name: asdict(found) for name, found in compare(scores, seed=seed).items()},
    }


def _content(scores: Scores, seed: int, open_picture: Opener) -> dict[str, Any]:
    return {
        "title": scores.title,
        "base_title": scores.base_title,
        "subtitle": scores.size,
        "notices": scores.notices,
        "comparisons": comparison_rows(scores, seed=seed),
        "summaries": [{"name": name, "cells": cells} for name, cells in summary_rows(scores, seed=seed)],
        "histograms": [chart for name in scores.names() if (chart := _histogram(scores, name)) is not None],
        "groups": [group for reward in scores.rewards for group in _groups(scores, reward, open_picture)],
    }


def summary_rows(scores: Scores, *, seed: int) -> list[tuple[str, list[tuple[str, str]]]]:
    """(score, its (what it is, how it reads)) of every score."""
    return [(name, _cells(summary)) for name, summary in summarise(scores, seed=seed).items()]


def _cells(summary: ScoreSummary) -> list[tuple[str, str]]:
    """(what it is, how it reads) of one line of the table."""
    low, _, middle, _, high = summary.quartiles or (None,) * 5
    bounds = summary.ci95
    failed = f" + {summary.failed} failed" if summary.failed else ""
    return [
        ("pictures", f"{words.count(summary.pictures)}{failed}"),
        ("prompts", words.count(summary.prompts)),
        ("mean", words.compact(summary.mean)),
        ("95 % interval", words.MISSING if bounds is None else " to ".join(map(words.compact, bounds))),
        ("spread", words.compact(summary.std)),
        ("within a prompt", words.compact(summary.within_prompt_std)),
        ("lowest", words.compact(low)),
        ("middle", words.compact(middle)),
        ("highest", words.compact(high)),
    ]


@dataclass(frozen=True, slots=True)
class ComparisonRow:
    """How the comparison of one score reads."""

    name: str
    units: str
    unit: str
    base: str
    tuned: str
    gain: str
    interval: str
    verdict: str
    mark: IntervalMark | None
    zero: float
    few: bool
    win_rate: str
    win_interval: str


def comparison_rows(scores: Scores, *, seed: int) -> list[ComparisonRow]:
    """One line a score; each has an axis of its own, since scores have units of their own."""
    rows = []
    for name, comparison in compare(scores, seed=seed).items():
        gain = comparison.gain
        axis = interval_axis([(gain.gain, gain.ci95)])
        digits = decimals(gain.gain)
        wins = comparison.win_rate_ci95
        rows.append(
            ComparisonRow(
                name=name,
                units=f"{words.count(gain.n)} {comparison.unit}",
                unit=comparison.unit,
                base=words.compact(gain.base),
                tuned=words.compact(gain.tuned),
                gain=words.signed(gain.gain, digits=digits),
                interval=words.interval(gain.ci95, digits=digits),
                verdict=words.verdict(gain.ci95),
                mark=interval_mark(gain.gain, gain.ci95, axis),
                zero=100.0 * -axis.low / (axis.high - axis.low),
                few=gain.n < words.FEW_PROMPTS,
                win_rate=f"{comparison.win_rate:.0%}",
                win_interval=words.MISSING if wins is None else f"{100 * wins[0]:.0f} to {wins[1]:.0%}",
            )
        )
    return rows


def decimals(value: float) -> int:
    """Decimal places at which a difference has three significant digits, 3 at least."""
    return 3 if value == 0 else max(3, 2 - int(np.floor(np.log10(abs(value)))))


def _histogram(scores: Scores, name: str) -> Histogram | None:
    series = {scores.title: column(scores.pictures, name)}
    if scores.base:
        series = {scores.base_title: column(scores.base, name), **series}
    return histogram(name, series)


def _extremes(scores: Scores, reward: str) -> dict[str, list[int]]:
    """Rows of the highest and of the lowest scores, or of the largest gains and losses; none stands in both."""
    values = column(scores.pictures, reward)
    if scores.base:
        values = values - column(scores.base, reward)
    order = [row for row in np.argsort(-values, kind="stable").tolist() if np.isfinite(values[row])]
    shown = min(_SHOWN, (len(order) + 1) // 2)
    return {"best": order[:shown], "worst": order[shown:][::-1][:shown]}


def _groups(scores: Scores, reward: str, open_picture: Opener) -> list[dict[str, Any]]:
    titles = {"best": f"{reward}: the highest", "worst": f"{reward}: the lowest"}
    if scores.base:
        titles = {"best": f"{reward}: the largest gains", "worst": f"{reward}: the smallest, or losses"}
    return [
        {"title": titles[word], "pictures": [_shown(scores, reward, row, open_picture) for row in rows]}
        for word, rows in _extremes(scores, reward).items()
        if rows
    ]


def _shown(scores: Scores, reward: str, row: int, open_picture: Opener) -> dict[str, Any]:
    tuned = scores.pictures[row]
    sides = [_side(tuned, reward, scores.title if scores.base else reward, open_picture)]
    change = "single"
    if scores.base:
        base = scores.base[row]
        sides = [_side(base, reward, "base", open_picture), _side(tuned, reward, "tuned", open_picture)]
        gain = tuned.scores[reward] - base.scores[reward]
        change = "same" if gain == 0 else ("up" if gain > 0 else "down")
    return {"sides": sides, "prompt": tuned.prompt, "note": Path(tuned.image).name, "change": change}


def _side(picture: ScoredPicture, reward: str, name: str, open_picture: Opener) -> dict[str, Any]:
    embedded = embed(open_picture(picture))
    return {
        "name": name,
        "source": embedded.source,
        "crisp": embedded.crisp,
        "score": words.compact(picture.scores[reward]),
        "details": ", ".join(f"{other} {words.compact(value)}" for other, value in picture.scores.items()),
    }


def _write_grid(path: Path, scores: Scores, reward: str, rows: Sequence[int], open_picture: Opener) -> None:
    shown = [scores.pictures[row] for row in rows]
    captions = [(picture.prompt, f"{reward} {words.compact(picture.scores[reward])}") for picture in shown]
    buffer = io.BytesIO()
    captioned_grid([open_picture(picture) for picture in shown], captions).save(buffer, format="PNG")
    write_bytes_atomically(path, buffer.getvalue())
