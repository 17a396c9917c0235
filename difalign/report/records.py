"""What one evaluation says: every sample's prompt, seed and scores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class SampleRecord:
    """The scores of one generated sample; ``(prompt_index, seed)`` names it across evaluations."""

    prompt: str
    kind: str  # category of the prompt
    seed: int
    scores: Mapping[str, float]  # name -> score, higher is better, NaN = none; "total" is what was trained on
    prompt_index: int  # position in the prompt list

    @property
    def key(self) -> tuple[int, int]:
        """The identity of the sample: same key in two evaluations means same prompt and same noise."""
        return (self.prompt_index, self.seed)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """All samples of one evaluation, taken after ``rollout`` rollouts of training."""

    rollout: int
    label: str  # "base", "tuned", or any other name
    records: tuple[SampleRecord, ...]

    @property
    def totals(self) -> list[float]:
        """The score of every sample that could be scored."""
        return [total for record in self.records if not math.isnan(total := record.scores["total"])]

    @property
    def mean(self) -> float:
        """Of the scores; NaN if there is none."""
        totals = self.totals
        return sum(totals) / len(totals) if totals else math.nan


def evaluation_to_json(evaluation: Evaluation) -> dict[str, Any]:
    """The evaluation as plain containers, the content of ``evaluations/NNNNNN.json``."""
    records = [
        {
            "prompt": record.prompt,
            "kind": record.kind,
            "seed": record.seed,
            "scores": {name: None if math.isnan(score) else score for name, score in record.scores.items()},
            "prompt_index": record.prompt_index,
        }
        for record in evaluation.records
    ]
    return {"rollout": evaluation.rollout, "label": evaluation.label, "records": records}


def evaluation_from_json(data: Mapping[str, Any]) -> Evaluation:
    """The evaluation that ``evaluation_to_json`` wrote.

    Raises:
        ValueError: if a field is missing or of the wrong type.
    """
    try:
        records = tuple(
            SampleRecord(
                prompt=str(row["prompt"]),
                kind=str(row.get("kind", "")),
                seed=int(row["seed"]),
                scores={str(n): math.nan if score is None else float(score) for n, score in row["scores"].items()},
                prompt_index=int(row["prompt_index"]),
            )
            for row in data["records"]
        )
        return Evaluation(rollout=int(data["rollout"]), label=str(data["label"]), records=records)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not an evaluation: {type(error).__name__} {error}; write it with RunLog") from error


def spread_over_kinds(records: Sequence[SampleRecord], *, limit: int) -> tuple[int, ...]:
    """Which records to show in a grid: up to ``limit``, shared evenly among the kinds, whatever they scored.

    Only the first seed of each prompt counts. Within a kind they are evenly spaced over the list, whose neighbours
    are often alike; the answer is sorted by kind (in order of first appearance), so the same samples are shown
    before and after training.
    """
    if limit < 1:
        raise ValueError(f"limit is {limit}; a grid needs at least 1 sample")
    by_kind: dict[str, list[int]] = {}
    seen: set[int] = set()
    for index, record in enumerate(records):
        if record.prompt_index not in seen:
            seen.add(record.prompt_index)
            by_kind.setdefault(record.kind, []).append(index)
    shares = dict.fromkeys(by_kind, 0)
    left = min(limit, sum(len(indices) for indices in by_kind.values()))
    while left:
        for kind, indices in by_kind.items():
            if left and shares[kind] < len(indices):
                shares[kind] += 1
                left -= 1
    return tuple(
        indices[(2 * i + 1) * len(indices) // (2 * share)]
        for share, indices in zip(shares.values(), by_kind.values(), strict=True)
        for i in range(share)
    )
