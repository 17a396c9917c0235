"""Small searches of the shipped pipeline, and what the tests of a folder compare."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from difalign.build.search_preflight import prepare_search
from difalign.build.search_run import Outcome, run_search
from difalign.build.search_settings import SearchSettings
from difalign.report.search_records import read_results, read_scores

PROMPTS = ("two red circles", "a blue square", "a green triangle")
SMALL: dict[str, Any] = {
    "prompt": PROMPTS,
    "reward": "verifier",
    "steps": 4,
    "guidance": 1.0,
    "n": 4,
    "method": "pruned",
    "stages": "0.7:0.5",
    "prompts_in_flight": 2,
}
ARGUMENTS = (
    *(word for prompt in PROMPTS for word in ("--prompt", prompt)),
    *("--steps", "4", "--guidance", "1", "--n", "4", "--method", "pruned", "--stages", "0.7:0.5"),
    *("--reward", "verifier", "--prompts-in-flight", "2", "--quiet"),
)  # the same on the command line


def settings(out: Path | None, **changes: Any) -> SearchSettings:
    """The small search with some settings changed."""
    return SearchSettings(**{**SMALL, "out": None if out is None else str(out), **changes})


def searched(out: Path, **changes: Any) -> Outcome:
    """Run it in this process."""
    outcome = run_search(prepare_search(settings(out, **changes)), quiet=True)
    assert outcome is not None
    return outcome


def found(out: Path) -> dict[str, Any]:
    """What a search found, by prompt, without times: who won, who survived, every score and every seed."""
    content = {}
    for line in read_results(out):
        assert line.folder is not None
        scores = read_scores(out / line.folder)
        looks = [(look.step, look.index, look.scores, look.kept) for look in (*scores.looks, scores.finish)]
        content[line.prompt] = (line.key, line.folder, line.winner, scores.seeds, looks, line.cost.nfe)
    return content


def order_of(out: Path) -> list[str]:
    """The prompts of ``results.jsonl``, as its lines stand."""
    return [json.loads(line)["prompt"] for line in (out / "results.jsonl").read_text().splitlines()]
