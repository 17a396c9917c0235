"""The page about a search: one file beside ``run.json`` that shows what became of every candidate of every prompt.

Everything but the pictures is inside the page; pictures are read from the folders of the prompts, by relative paths.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from difalign.report import words
from difalign.report.log import REPORT_FILE, write_text_atomically
from difalign.report.rendering import render
from difalign.report.search_curve import best_of_chart
from difalign.report.search_pictures import sheet_columns
from difalign.report.search_records import (
    GRID_FILE,
    WINNER_FILE,
    CostRecord,
    LookRecord,
    ResultLine,
    RunRecord,
    ScoresRecord,
    read_results,
    read_run_record,
    read_scores,
)
from difalign.report.statistics import bootstrap_interval

if TYPE_CHECKING:
    pass

_COSTS = {
    "nfe": "Evaluations of the network",
    "decodes": "Decodes",
    "scores": "Scores",
    "previews": "of these, previews",
    "tflops": "TFLOPs",
    "seconds": "Seconds",
}


@dataclass(frozen=True, slots=True)
class SearchRun:
    """What lies in the folder of a search."""

    folder: Path
    run: RunRecord
    results: tuple[ResultLine, ...]
    scores: dict[str, ScoresRecord]  # by folder name; those that can be read
    problems: tuple[str, ...]  # what cannot be


def read_search(folder: Path) -> SearchRun:
    """Read the folder of a search; a prompt whose scores are broken is a problem, not an end.

    Raises:
        ValueError: if ``run.json`` or ``results.jsonl`` is missing or broken.
    """
    run, results = read_run_record(folder), read_results(folder)
    scores: dict[str, ScoresRecord] = {}
    problems = []
    for line in results:
        if line.folder is not None and line.winner is not None:
            try:
                scores[line.folder] = read_scores(folder / line.folder)
            except ValueError as error:
                problems.append(f"{line.prompt}: {error}")
    return SearchRun(folder, run, results, scores, tuple(problems))


def write_report(out: Path) -> Path:
    """Write ``report.html`` beside ``run.json``; a search that is not done gives a page about what there is.

    Raises:
        ValueError: if the folder holds no search.
    """
    path = out / REPORT_FILE
    write_text_atomically(path, render("search.html.j2", _content(read_search(out))))
    return path


def _content(found: SearchRun) -> dict[str, Any]:
    prompts = [_prompt(found, line) for line in found.results]
    chart = best_of_chart(list(found.scores.values()))
    return {
        "title": found.folder.resolve().name,
        "unfinished": found.run.totals.prompts - len(found.results),
        "problems": found.problems,
        "failures": [(line.prompt, line.error) for line in found.results if line.error is not None],
        "headline": _headline(found),
        "facts": _facts(found),
        "prompts": prompts,
        "data": _script_data(prompts),
        "costs": _costs(found),
        "stages": found.run.plan.stages if found.run.plan else (),
        "plan": found.run.plan,
        "charts": [] if chart is None else [chart],
        "settings": [
            (name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
            for name, value in found.run.resolved.items()
        ],
        "software": [*found.run.software.items(), ("commit", found.run.git_commit or "none")],
        "levels": _levels(found),
    }


def _headline(found: SearchRun) -> dict[str, str]:
    values = [line.winner.score for line in found.results if line.winner is not None]
    if not values:
        return {"mean": words.MISSING, "interval": ""}
    bounds = bootstrap_interval(values, np.random.default_rng(0))
    interval = "" if bounds is None else f"{words.score(bounds[0])} to {words.score(bounds[1])}"
    return {"mean": words.score(float(np.mean(values))), "interval": interval}


def _facts(found: SearchRun) -> list[tuple[str, str]]:
    run, plan = found.run, found.run.plan
    resolved = run.resolved
    facts = [
        ("Prompts", f"{words.count(len(found.results))} of {words.count(run.totals.prompts)}"),
        ("Candidates a prompt", words.count(plan.candidates) if plan else words.MISSING),
        ("Walked to the end", words.count(plan.finished) if plan else words.MISSING),
        *((name.capitalize(), _text(resolved[name])) for name in ("method", "pipeline", "reward")),
        ("Judge on the way", _text(resolved.get("preview")) if plan and plan.stages else words.MISSING),
        ("Seed", str(resolved["seed"])),
        ("Device", run.device),
        ("Time", words.duration(run.totals.seconds)),
    ]
    return [(name, value) for name, value in facts if value not in (words.MISSING, "none", "")]


def _costs(found: SearchRun) -> list[dict[str, str]]:
    """Planned against counted, a prompt and in all."""
    run, done = found.run, len(found.scores)
    counted = asdict(run.totals.cost)
    planned = asdict(run.plan.cost) if run.plan else dict.fromkeys(counted)
    rows = []
    for key, name in _COSTS.items():
        whole, ahead = counted[key], planned[key]
        if whole is None and ahead is None:
            continue
        verdict = ""
        if whole is not None and ahead is not None and key not in ("tflops", "seconds"):
            verdict = "exactly" if whole == ahead * done else "differs"
        rows.append(
            {
                "name": name,
                "planned": words.compact(ahead),
                "counted": words.compact(None if whole is None or not done else whole / done),
                "total": words.compact(whole),
                "verdict": verdict,
            }
        )
    return rows


def _levels(found: SearchRun) -> list[dict[str, str]]:
    """Who looked at which level, as most prompts have it."""
    first = next(iter(found.scores.values()), None)
    if first is None:
        return []
    return [
        {
            "sigma": "finished" if look.sigma is None else f"σ {look.sigma:.3g}",
            "step": str(look.step),
            "judge": look.judge or "nobody",
            "reads": reads(look),
            "alive": words.count(len(look.index)),
            "kept": words.count(len(look.kept)),
        }
        for look in (*first.looks, first.finish)
    ]


def reads(look: LookRecord) -> str:
    """What a judge was shown, in words."""
    if look.judge is None:
        return "nothing"
    if look.sigma is None:
        return "the finished picture"
    names = {"guided": "guided estimate", "conditional": "conditional estimate", "state": "noisy state"}
    shown = " and ".join(names[source] for source in look.sources) or "clean estimate"
    return f"{shown}, {'decoded' if look.decoded else 'as latents'}"


def _prompt(found: SearchRun, line: ResultLine) -> dict[str, Any]:
    """One entry of the list; ``detail`` is what the script draws."""
    scores = found.scores.get(line.folder or "")
    return {
        "prompt": line.prompt,
        "score": words.score(line.winner.score if line.winner else None),
        "error": line.error or ("" if scores else "its files cannot be read"),
        "thumbnail": f"{line.folder}/{WINNER_FILE}" if scores else "",
        "detail": None if scores is None else _detail(found, line, scores),
    }


def _detail(found: SearchRun, line: ResultLine, scores: ScoresRecord) -> dict[str, Any]:
    assert scores.winner is not None
    folder = str(line.folder)
    width, height = _size(found.folder / folder / WINNER_FILE)
    return {
        "folder": folder,
        "grid": f"{folder}/{GRID_FILE}" if (found.folder / folder / GRID_FILE).is_file() else "",
        "aspect": round(height / width, 4),
        "crisp": max(width, height) <= 128,
        "winner": scores.winner.index,
        "seeds": [str(seed) for seed in scores.seeds],  # a number of the page holds 53 bits only
        "levels": [_level(look, folder) for look in (*scores.looks, scores.finish)],
        "costs": _prompt_costs(found.run, scores.cost),
        "ranked": "the sum of ranks" if scores.ranked_by == "rank_sum" else "score",
        "cut": scores.cut_short,
    }


def _level(look: LookRecord, folder: str) -> dict[str, Any]:
    return {
        "sigma": None if look.sigma is None else f"{look.sigma:.3g}",
        "judge": look.judge or "",
        "reads": reads(look),
        "index": look.index,
        "scores": look.scores,
        "components": look.components,
        "errors": look.errors,
        "kept": look.kept,
        "sheet": None if look.sheet is None else f"{folder}/{look.sheet}",
        "columns": sheet_columns(len(look.index)),
    }


def _prompt_costs(run: RunRecord, cost: CostRecord) -> list[tuple[str, str, str]]:
    counted, planned = asdict(cost), asdict(run.plan.cost) if run.plan else {}
    return [
        (name, words.compact(planned.get(key)), words.compact(counted[key]))
        for key, name in _COSTS.items()
        if counted[key] is not None or planned.get(key) is not None
    ]


def _size(path: Path) -> tuple[int, int]:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as opened:
            return opened.size
    except (UnidentifiedImageError, OSError):
        return 1, 1  # the page shows what the browser makes of it


def _script_data(prompts: Sequence[dict[str, Any]]) -> str:
    """JSON that can stand in a script element whatever the prompts say."""
    details = [{"prompt": entry["prompt"], "error": entry["error"], "detail": entry["detail"]} for entry in prompts]
    return json.dumps(details, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")


def _text(value: object) -> str:
    """A setting in a few words; of what is described at length, the names."""
    if isinstance(value, dict):
        return ", ".join(value) or "none"
    return "none" if value is None else _whole(value)


def _whole(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
