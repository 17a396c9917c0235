"""The samples of two evaluations side by side."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from difalign.report.images import Pair, before_after_grid, read_tiles
from difalign.report.log import BEFORE_AFTER_FILE, write_bytes_atomically
from difalign.report.records import spread_over_kinds
from difalign.report.run_folder import StoredEvaluation, read_run


def sample_pairs(base: StoredEvaluation, tuned: StoredEvaluation) -> list[Pair]:
    """The samples shown in both grids, same prompt and same noise, in the order of the base's grid.

    Raises:
        ValueError: if a grid cannot be read.
    """
    if base.grid is None or tuned.grid is None:
        return []
    before, after = read_tiles(base.grid), read_tiles(tuned.grid)
    before_records = {record.key: record for record in base.evaluation.records}
    after_records = {record.key: record for record in tuned.evaluation.records}
    return [
        Pair(tile, after[key], before_records[key], after_records[key])
        for key, tile in before.items()
        if key in after and key in before_records and key in after_records
    ]


def pairs_over_kinds(pairs: Sequence[Pair], *, limit: int) -> list[Pair]:
    """Up to ``limit`` of the pairs, shared evenly among the kinds of prompt, whatever they scored."""
    return [pairs[index] for index in spread_over_kinds([pair.before_record for pair in pairs], limit=limit)]


def write_before_after(folder: Path, *, limit: int = 16, columns: int = 4) -> Path:
    """Draw ``before_after.png`` in a run folder, from the grids of its base and latest evaluation.

    Raises:
        ValueError: if the folder lacks two evaluations with common samples.
    """
    run = read_run(folder)
    pairs = sample_pairs(run.base, run.latest) if run.base and run.latest else []
    if not pairs:
        raise ValueError(f"{folder} has no samples of two evaluations to compare; run with image grids switched on")
    buffer = io.BytesIO()
    before_after_grid(pairs_over_kinds(pairs, limit=limit), columns=columns).save(buffer, format="PNG", optimize=True)
    path = run.folder / BEFORE_AFTER_FILE
    write_bytes_atomically(path, buffer.getvalue())
    return path
