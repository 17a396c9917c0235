"""Folders as a search leaves them, with made-up candidates that have pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from difalign.report.search_pictures import Pictures, write_pictures
from difalign.report.search_records import (
    RUN_FORMAT,
    SCORES_FORMAT,
    CostRecord,
    FailureRecord,
    LookRecord,
    PlanRecord,
    PriceRecord,
    ResultLine,
    RunRecord,
    ScoresRecord,
    StageRecord,
    TotalsRecord,
    WinnerRecord,
    append_result,
    write_run,
    write_scores,
)

STEPS = 10
PROMPTS = ("two red circles", "a <blue> square left of a green triangle", "three yellow stars", "a dark ring")
SIGMAS = {2: 0.88, 5: 0.61}  # step -> sigma
PRICES = {"nfe": PriceRecord(1.0, 0.0, 0.0), "tflops": PriceRecord(0.02, 0.004, 0.001)}


def scores_of(
    prompt: str, number: int, *, candidates: int = 8, keeps: Sequence[int] = (4, 2), gain: float = 0.0
) -> ScoresRecord:
    """What a search of a prompt said: estimates that agree with the finished samples the more the cleaner they are."""
    rng = np.random.default_rng(number)
    final = np.round(rng.uniform(0.1, 0.8, candidates), 4)
    alive, looks = list(range(candidates)), []
    for (step, sigma), keep in zip(SIGMAS.items(), keeps, strict=False):
        noisy = np.round(10 * (final + sigma * rng.normal(0, 0.2, candidates)), 4)  # another scale at every level
        kept = sorted(alive, key=lambda i: -noisy[i])[:keep]
        looks.append(_look(step, sigma, alive, noisy, kept))
        alive = kept
    finished = np.round(final + gain, 4)
    best = max(alive, key=lambda i: finished[i])
    seeds = tuple(2**62 + 1 + 1000 * number + i for i in range(candidates))
    counts = [len(look.index) for look in looks]
    walked = [candidates, *keeps[: len(looks)]]
    ends = [*[look.step + 1 for look in looks], STEPS]
    starts = [0, *ends[:-1]]
    nfe = sum(n * (end - start) for n, start, end in zip(walked, starts, ends, strict=True))
    looked = sum(counts)
    cost = CostRecord(nfe, looked + len(alive), looked + len(alive), looked, round(0.02 * nfe, 4), 0.5)
    return ScoresRecord(
        format=SCORES_FORMAT,
        prompt=prompt,
        seeds=seeds,
        looks=tuple(looks),
        finish=replace(_look(STEPS, None, alive, finished, [best]), sources=()),
        winner=WinnerRecord(best, seeds[best], float(finished[best])),
        cost=cost,
        software={"difalign": "0"},
    )


def run_of(
    prompts: Sequence[str], of_each: ScoresRecord, *, failed: Sequence[str] = (), **settings: object
) -> RunRecord:
    """A run whose prompts all cost what one of them did."""
    one, count = of_each.cost, len(prompts) - len(failed)
    whole = CostRecord(
        one.nfe * count, one.decodes * count, one.scores * count, one.previews * count, None, 0.5 * count
    )
    method = "pruned" if of_each.looks else "best_of_n"
    resolved = {"pipeline": "tiny-sd3", "method": method, "reward": "verifier", "seed": 7, "steps": STEPS, **settings}
    stages = tuple(StageRecord(k.step, k.sigma or 0.0, len(k.index), len(k.kept)) for k in of_each.looks)
    return RunRecord(
        format=RUN_FORMAT,
        settings={"prompts": "prompts.txt"},
        resolved=resolved,
        software={"difalign": "0", "torch": "2"},
        git_commit=None,
        device="cpu",
        prices=PRICES,
        plan=PlanRecord(len(of_each.seeds), len(of_each.finish.index), STEPS, stages, one),
        totals=TotalsRecord(len(prompts), len(prompts), whole, 0.6 * count),
        failures=tuple(FailureRecord(prompt, "the reward raised ValueError") for prompt in failed),
    )


def fake_search(
    folder: Path,
    *,
    prompts: Sequence[str] = PROMPTS,
    failed: Sequence[str] = (),
    candidates: int = 8,
    keeps: Sequence[int] = (4, 2),
    gain: float = 0.0,
    size: int = 12,
    **settings: object,
) -> Path:
    """Write a whole run, pictures included, and return its folder."""
    records = [scores_of(p, i, candidates=candidates, keeps=keeps, gain=gain) for i, p in enumerate(prompts)]
    for number, scores in enumerate(records):
        name = f"p{number:05d}"
        if scores.prompt in failed:
            line = ResultLine(f"k{number}", scores.prompt, None, None, "the reward raised ValueError", scores.cost, 0.1)
        else:
            finish = pictures_of(scores.finish, size)
            write_scores(folder / name, write_pictures(folder / name, scores, look_pictures(scores, size), finish))
            line = ResultLine(f"k{number}", scores.prompt, name, scores.winner, None, scores.cost, 0.6)
        append_result(folder, line)
    write_run(folder, run_of(prompts, records[0], failed=failed, **settings))
    return folder


def look_pictures(scores: ScoresRecord, size: int = 12) -> list[Pictures | None]:
    return [pictures_of(look, size) for look in scores.looks]


def pictures_of(look: LookRecord, size: int = 12) -> Pictures:
    """The pictures of the candidates of a look, under as much noise as its sigma."""
    return np.stack([np.asarray(picture(candidate, size, blur=look.sigma or 0.0)) for candidate in look.index])


def picture(candidate: int, size: int = 12, *, blur: float = 0.0) -> Image.Image:
    """A picture that says which candidate it is: a disc whose place and colour depend on it, under noise."""
    rng = np.random.default_rng(candidate)
    colour, (row, column) = rng.uniform(0.2, 1.0, 3), rng.uniform(0.3, 0.7, 2) * size
    y, x = np.mgrid[:size, :size]
    disc = ((y - row) ** 2 + (x - column) ** 2 < (size / 4) ** 2)[..., None]
    pixels = np.where(disc, colour, 0.05) * (1 - blur) + blur * rng.uniform(0, 1, (size, size, 3))
    return Image.fromarray(np.rint(pixels * 255).astype(np.uint8))


def _look(step: int, sigma: float | None, alive: Sequence[int], scores: np.ndarray, kept: Sequence[int]) -> LookRecord:
    values = tuple(float(scores[i]) for i in alive)
    return LookRecord(
        step=step,
        sigma=sigma,
        judge="verifier",
        sources=("guided",),
        decoded=True,
        index=tuple(alive),
        scores=values,
        components={"count": tuple(round(value / 2, 4) for value in values)},
        errors={},
        kept=tuple(kept),
    )
