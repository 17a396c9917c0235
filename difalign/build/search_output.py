"""What a search found, as the records and pictures that are left on the disk."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from torch import Tensor

from difalign.report.search_pictures import Pictures, Saved, write_pictures
from difalign.report.search_records import (
    SCORES_FORMAT,
    CostRecord,
    LookRecord,
    ScoresRecord,
    WinnerRecord,
    write_scores,
)
from difalign.search.results import Found, Look


@dataclass(frozen=True, slots=True)
class Asked:
    """Who judged one look, and by what."""

    judge: str | None  # name of the reward; None: nobody, candidates were drawn
    sources: tuple[Literal["guided", "conditional", "state"], ...] = ()
    decoded: bool = True


def scores_record(
    found: Found,
    *,
    reward: str,
    asked: Sequence[Asked],
    cost: CostRecord,
    software: Mapping[str, str],
    ranked_by: Literal["score", "rank_sum"] = "score",
    cut_short: bool = False,
) -> ScoresRecord:
    """The record of one prompt, without the names of files.

    Args:
        found: what the engine returned.
        reward: name of the one that judged finished samples.
        asked: one entry a look on the way.
        cost: of this prompt, as counted.
        software: package -> version.
        ranked_by: what ordered the finished samples.
        cut_short: whether a limit ended the search of this prompt.

    Raises:
        ValueError: if there is not one entry of ``asked`` a look.
    """
    if len(asked) != len(found.looks):
        raise ValueError(f"{len(asked)} judges named for {len(found.looks)} looks; name one a look")
    winner = None
    if found.winner is not None and found.score is not None:
        winner = WinnerRecord(found.winner, found.seeds[found.winner], found.score)
    return ScoresRecord(
        format=SCORES_FORMAT,
        prompt=found.prompt,
        seeds=found.seeds,
        looks=tuple(_look(look, who) for look, who in zip(found.looks, asked, strict=True)),
        finish=_look(found.finish, Asked(reward)),
        winner=winner,
        cost=cost,
        software=dict(software),
        ranked_by=ranked_by,
        cut_short=cut_short,
    )


def write_prompt(folder: Path, found: Found, scores: ScoresRecord, *, save: Saved = "winner") -> ScoresRecord:
    """Write the folder of a prompt: pictures first and ``scores.json`` last, so that where it is, all is.

    Raises:
        ValueError: if the search did not keep the finished pictures.
    """
    finish = _pictures(found.finish)
    if finish is None:
        raise ValueError("the finished pictures were not kept; search with keep_pictures=True")
    written = write_pictures(folder, scores, [_pictures(look) for look in found.looks], finish, save=save)
    write_scores(folder, written)
    return written


def _look(look: Look, asked: Asked) -> LookRecord:
    return LookRecord(
        step=look.step,
        sigma=look.sigma,
        judge=asked.judge,
        sources=asked.sources,
        decoded=asked.decoded,
        index=look.index,
        scores=_scores(look.scores),
        components={name: _scores(values) for name, values in look.components.items()},
        errors=dict(look.errors),
        kept=look.kept,
    )


def _scores(values: Sequence[float]) -> tuple[float | None, ...]:
    return tuple(value if math.isfinite(value) else None for value in values)


def _pictures(look: Look) -> Pictures | None:
    return None if look.pictures is None else _bytes(look.pictures)


def _bytes(pictures: Tensor) -> Pictures:
    """[A, C, H, W] uint8, C 1 or 3 -> [A, H, W, 3]."""
    array = pictures.numpy().transpose(0, 2, 3, 1)
    return np.broadcast_to(array, (*array.shape[:3], 3))
