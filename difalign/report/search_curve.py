"""The best reward that more candidates would find, against what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from difalign.report.chart import chart_over, whole_number_axis
from difalign.report.series import Panel, Series
from difalign.report.words import compact

if TYPE_CHECKING:
    from difalign.report.chart import Chart
    from difalign.report.search_records import ScoresRecord

_MOST_POINTS = 20


def best_of_series(prompts: Sequence[ScoresRecord]) -> Series | None:
    """Expected best of n over evaluations of the network, from candidates that were all finished and scored.

    From one pool of N it is exact for every n up to N, a mean over prompts. Candidates that were dropped on the way
    have no final score, so that a pruned search says nothing about other sizes: None.
    """
    import torch

    from difalign.core.expected_best import expected_best

    pools = [scores.finish.scores for scores in prompts]
    sizes = {len(scores.seeds) for scores in prompts}
    whole = all(not scores.looks and len(scores.finish.index) == len(scores.seeds) for scores in prompts)
    if len(sizes) != 1 or not whole or any(value is None for pool in pools for value in pool):
        return None
    (size,) = sizes
    counts = sorted({round(size ** (i / (_MOST_POINTS - 1))) for i in range(_MOST_POINTS)})
    values = torch.tensor(pools, dtype=torch.float64)
    best = [float(expected_best(values, n).mean()) for n in counts]
    nfe = float(np.mean([scores.cost.nfe / size for scores in prompts]))
    return Series("best_of_n", np.array(counts) * nfe, np.array(best))


def reached_point(prompts: Sequence[ScoresRecord], name: str) -> Series | None:
    """The mean score of the winners over evaluations a prompt: one point; None without a winner."""
    won = [(scores.cost.nfe, scores.winner.score) for scores in prompts if scores.winner is not None]
    if not won:
        return None
    nfe, score = np.array(won, dtype=np.float64).mean(axis=0)
    return Series(name, np.array([nfe]), np.array([score]))


def best_of_chart(prompts: Sequence[ScoresRecord]) -> Chart | None:
    """The curve of a best-of-N run; the one point that a pruned run has."""
    curve = best_of_series(prompts)
    if curve is not None and curve.x.size > 1:
        note = "Expected best of n candidates, exact from the scores of all, a mean over prompts."
        return curve_chart([curve], note)
    point = reached_point(prompts, "reached")
    if point is None:
        return None
    note = "What was reached. Dropped candidates have no final score: other sizes need runs of their own."
    return curve_chart([point], note)


def curve_chart(series: Sequence[Series], note: str) -> Chart:
    """Curves and points on one pair of axes."""
    panel = Panel("Best reward against cost", tuple(item.name for item in series), note)
    high = max(float(item.x.max()) for item in series)
    axis = whole_number_axis(0.0, high)
    return chart_over(
        panel,
        series,
        axis,
        position=lambda x: f"{compact(round(x))} evaluations a prompt",
        over="evaluations a prompt",
        marks=True,
    )
