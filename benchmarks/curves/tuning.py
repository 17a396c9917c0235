"""What short trials say about a method's settings: ranked by the reward on training prompts at equal seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def ranked(lines: Sequence[Mapping[str, Any]], *, pipeline: str) -> list[Mapping[str, Any]]:
    """The trials of a pipeline, by method and budget, the best first."""
    mine = [line for line in lines if line["pipeline"] == pipeline]
    return sorted(mine, key=lambda line: (line["method"], line["run"]["budget"], -line["points"][-1]["train"]))


def ranking(lines: Sequence[Mapping[str, Any]], *, pipeline: str) -> str:
    """A line of text a trial."""
    text = []
    for line in ranked(lines, pipeline=pipeline):
        first, last = line["points"][0], line["points"][-1]
        changes = " ".join(f"{key}={value}" for key, value in line["run"]["changes"].items())
        text.append(
            f"{line['method']:18s} {last['train']:.4f} ({last['train'] - first['train']:+.4f}) "
            f"strict {last['train_strict']:.3f} diversity {last['diversity']:.3f} after {last['update']} updates, "
            f"{last['forwards']} forwards, {last['seconds']:.0f} s ({last['cpu_seconds']:.0f} s of processor) {changes}"
        )
    return "\n".join(text)
