"""Searches against one another: the same prompts and noise, paired, and what each of them cost."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from difalign.report import words
from difalign.report.chart import IntervalMark, interval_axis, interval_mark
from difalign.report.log import write_text_atomically
from difalign.report.rendering import render
from difalign.report.score_page import decimals
from difalign.report.score_summary import Comparison, compare_scores
from difalign.report.search_curve import best_of_series, curve_chart, reached_point
from difalign.report.search_page import SearchRun, read_search
from difalign.report.search_records import ScoresRecord
from difalign.report.series import Series

MUST_AGREE = ("reward", "seed")  # without them, scores are not on one scale or winners not of one noise
SCORE = "score"
_UNITS = ("nfe", "tflops", "seconds")


@dataclass(frozen=True, slots=True)
class Versus:
    """One search against the first."""

    name: str
    method: str
    gains: dict[str, Comparison]  # "score", then every component that all winners have
    wins: int  # prompts whose winner has a higher score than the first search's
    ties: int
    losses: int
    cost_ratio: dict[str, float]  # unit -> this search's cost of a prompt over the first's


@dataclass(frozen=True, slots=True)
class SearchComparison:
    """Several searches of the same prompts."""

    base: str
    prompts: int
    left_out: tuple[str, ...]  # prompts without a winner in at least one search
    others: tuple[Versus, ...]
    curves: tuple[Series, ...]  # best reward over evaluations a prompt


def compare_searches(folders: Sequence[Path], *, seed: int = 0) -> SearchComparison:
    """Compare every search with the first.

    Args:
        folders: of two or more searches of the same prompts, with the same reward and seed.
        seed: of the resampling.

    Raises:
        ValueError: if there are fewer than two, one is unreadable, no prompt has a winner in all of them, or they
            differ in what must agree, with what differs.
    """
    if len(folders) < 2:
        raise ValueError(f"got {len(folders)} search; give the folders of two or more")
    runs = [read_search(folder) for folder in folders]
    names = _names(folders)
    base, listed = runs[0], _by_prompt(runs[0])
    for name, run in zip(names[1:], runs[1:], strict=True):
        _refuse_others(names[0], base, name, run)
    found = [_by_prompt(run) for run in runs]
    shared = [key for key in listed if all(one[key] is not None for one in found)]
    if not shared:
        raise ValueError("no prompt has a winner in all searches; there is nothing to compare")
    won = [[scores for key in shared if (scores := one[key]) is not None] for one in found]
    return SearchComparison(
        base=names[0],
        prompts=len(shared),
        left_out=tuple(prompt for prompt, number in listed if (prompt, number) not in set(shared)),
        others=tuple(
            _versus(name, run, won[0], scores, seed=seed)
            for name, run, scores in zip(names[1:], runs[1:], won[1:], strict=True)
        ),
        curves=tuple(
            curve
            for name, scores in zip(names, won, strict=True)
            if (curve := _named(best_of_series(scores), name) or reached_point(scores, name)) is not None
        ),
    )


def as_json(found: SearchComparison) -> dict[str, Any]:
    """For programs."""
    return {
        "base": found.base,
        "prompts": found.prompts,
        "left_out": list(found.left_out),
        "runs": [
            {
                "run": one.name,
                "method": one.method,
                "wins": one.wins,
                "ties": one.ties,
                "losses": one.losses,
                "cost_ratio": one.cost_ratio,
                "scores": {
                    name: {
                        "base": of.gain.base,
                        "run": of.gain.tuned,
                        "gain": of.gain.gain,
                        "ci95": None if of.gain.ci95 is None else list(of.gain.ci95),
                        "win_rate": of.win_rate,
                        "prompts": of.gain.n,
                    }
                    for name, of in one.gains.items()
                },
            }
            for one in found.others
        ],
    }


@dataclass(frozen=True, slots=True)
class ComparisonLine:
    """How one score of one search reads."""

    run: str
    score: str
    base: str
    value: str
    gain: str
    interval: str
    verdict: str
    outcome: str  # won, tied, lost; of the score that decided
    cost: str  # evaluations against the first search's
    mark: IntervalMark | None
    zero: float
    few: bool


def lines(found: SearchComparison) -> list[ComparisonLine]:
    """One line a search and score."""
    made = []
    for one in found.others:
        for name, of in one.gains.items():
            axis, digits = interval_axis([(of.gain.gain, of.gain.ci95)]), decimals(of.gain.gain)
            decided = name == SCORE
            made.append(
                ComparisonLine(
                    run=one.name,
                    score=name,
                    base=words.score(of.gain.base),
                    value=words.score(of.gain.tuned),
                    gain=words.signed(of.gain.gain, digits=digits),
                    interval=words.interval(of.gain.ci95, digits=digits),
                    verdict=words.verdict(of.gain.ci95),
                    outcome=f"{one.wins} / {one.ties} / {one.losses}" if decided else "",
                    cost=_ratios(one.cost_ratio) if decided else "",
                    mark=interval_mark(of.gain.gain, of.gain.ci95, axis),
                    zero=100.0 * -axis.low / (axis.high - axis.low),
                    few=of.gain.n < words.FEW_PROMPTS,
                )
            )
    return made


def write_comparison(path: Path, found: SearchComparison) -> Path:
    """Write the comparison as a page that needs nothing from elsewhere."""
    note = "A curve is best-of-n, exact from the scores of all candidates; a point is what a pruned search reached."
    content = {
        "base": found.base,
        "prompts": found.prompts,
        "left_out": found.left_out,
        "lines": lines(found),
        "chart": curve_chart(found.curves, note) if found.curves else None,
    }
    write_text_atomically(path, render("search_comparison.html.j2", content))
    return path


def _names(folders: Sequence[Path]) -> list[str]:
    """Folder names, or whole paths where names are the same."""
    short = [folder.resolve().name for folder in folders]
    return short if len(set(short)) == len(short) else [str(folder) for folder in folders]


def _by_prompt(run: SearchRun) -> dict[tuple[str, int], ScoresRecord | None]:
    """(prompt, how many of that text came before) -> its scores; None without a winner."""
    found: dict[tuple[str, int], ScoresRecord | None] = {}
    seen: dict[str, int] = {}
    for line in run.results:
        number = seen.get(line.prompt, 0)
        seen[line.prompt] = number + 1
        found[(line.prompt, number)] = run.scores.get(line.folder or "")
    return found


def _refuse_others(base_name: str, base: SearchRun, name: str, run: SearchRun) -> None:
    for key in MUST_AGREE:
        first, second = base.run.resolved[key], run.run.resolved[key]
        if first != second:
            said = [json.dumps(value, ensure_ascii=False) for value in (first, second)]
            raise ValueError(
                f"{key} differs: {said[0]} in {base_name}, {said[1]} in {name}; compare runs that share it"
            )
    mine, other = _by_prompt(base), _by_prompt(run)
    if differing := [key[0] for key in (*mine, *other) if (key in mine) != (key in other)]:
        raise ValueError(
            f"prompts differ: {base_name} has {len(mine)} and {name} has {len(other)}, and {len(differing)} stand in "
            f"one of them only, such as {differing[0]!r}; search the same prompts, or resume the one that is not done"
        )


def _versus(
    name: str, run: SearchRun, base: Sequence[ScoresRecord], other: Sequence[ScoresRecord], *, seed: int
) -> Versus:
    before, after = _winning(base), _winning(other)
    numbers = np.arange(len(base))
    gains = {
        key: gain
        for key, values in before.items()
        if key in after and (gain := compare_scores(values, after[key], numbers, seed=seed)) is not None
    }
    difference = np.array(after[SCORE]) - np.array(before[SCORE])
    ratio = {}
    for unit in _UNITS:
        spent = [[getattr(scores.cost, unit) for scores in side] for side in (base, other)]
        if None not in (*spent[0], *spent[1]) and sum(spent[0]) > 0:
            ratio[unit] = sum(spent[1]) / sum(spent[0])
    return Versus(
        name=name,
        method=str(run.run.resolved["method"]),
        gains=gains,
        wins=int((difference > 0).sum()),
        ties=int((difference == 0).sum()),
        losses=int((difference < 0).sum()),
        cost_ratio=ratio,
    )


def _winning(prompts: Sequence[ScoresRecord]) -> dict[str, list[float]]:
    """What the winners of all prompts were scored: "score", and the components that all of them have."""
    table: dict[str, list[float]] = {}
    for scores in prompts:
        assert scores.winner is not None
        at = scores.finish.index.index(scores.winner.index)
        table.setdefault(SCORE, []).append(scores.winner.score)
        for name, values in scores.finish.components.items():
            if name != SCORE and (value := values[at]) is not None:
                table.setdefault(name, []).append(value)
    return {name: values for name, values in table.items() if len(values) == len(prompts)}


def _ratios(ratio: dict[str, float]) -> str:
    return ", ".join(f"{value:.2f}× {unit}" for unit, value in ratio.items())


def _named(curve: Series | None, name: str) -> Series | None:
    return None if curve is None else Series(name, curve.x, curve.y)
