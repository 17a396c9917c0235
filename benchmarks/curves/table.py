"""What the runs scored at equal training seconds, and which bands do not touch, in words and numbers of the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from benchmarks.curves.bands import Band, band, last_common, stretches_above
from benchmarks.curves.methods import Comparison, Family
from benchmarks.curves.rows import Run

_SHARES = (0.25, 0.5, 1.0)  # of the seconds that all runs have
_PLACES = 121  # at which bands are compared
_COUNTS = {"update": "updates", "forwards": "denoiser forwards", "reward_calls": "reward calls"}


def write_table(family: Family, runs: Mapping[str, Mapping[int, Run]], *, clock: str) -> str:
    """The page of a pipeline: scores, counts, and a sentence a comparison.

    Args:
        family: the pipeline and its methods.
        runs: method -> seed -> run; methods without runs are left out.
        clock: the axis along which runs are equal, ``seconds`` or ``cpu_seconds``.
    """
    order = [method for method in family.methods if method.name in runs]
    end = last_common([run for seeds in runs.values() for run in seeds.values()], clock)
    x = np.array([share * end for share in _SHARES])
    unit = {"seconds": "s", "cpu_seconds": "s of processor time"}[clock]
    head = ["method", *(f"{value:.0f} {unit}" for value in x), "strict", "diversity", *_COUNTS.values(), "seeds"]
    lines = [f"# {family.pipeline}", "", _caption(family, end, unit), "", _row(head), _row(["---"] * len(head))]
    for method in order:
        mine = list(runs[method.name].values())
        scores = _cells(band(mine, axis=clock, figure="heldout", x=x))
        others = [_cells(band(mine, axis=clock, figure=name, x=x[-1:]))[0] for name in ("heldout_strict", "diversity")]
        counts = [f"{band(mine, axis=clock, figure=name, x=x[-1:]).mean[0]:,.0f}" for name in _COUNTS]
        seeds = ", ".join(str(seed) for seed in sorted(runs[method.name]))
        lines.append(_row([method.label, *scores, *others, *counts, seeds]))
    lines += ["", *(f"- {compared(family, runs, pair, clock=clock)}" for pair in family.comparisons)]
    lines += ["", *(f"- **{method.label}**: {method.about}." for method in order)]
    return "\n".join(lines) + "\n"


def compared(family: Family, runs: Mapping[str, Mapping[int, Run]], pair: Comparison, *, clock: str) -> str:
    """One sentence about two methods: where their bands do not touch, from the data alone."""
    better, baseline = family.method(pair.better).label, family.method(pair.baseline).label
    if pair.better not in runs or pair.baseline not in runs:
        return f"{better} against {baseline}: not both have been run."
    both = [list(runs[name].values()) for name in (pair.better, pair.baseline)]
    end = last_common([run for seeds in both for run in seeds], clock)
    x = np.linspace(0.0, end, _PLACES)
    upper, lower = (band(seeds, axis=clock, figure="heldout", x=x) for seeds in both)
    gap = upper.mean[-1] - lower.mean[-1]
    means = f"at {end:.0f} s {upper.mean[-1]:.3f} to {lower.mean[-1]:.3f} ({gap:+.3f})"
    if min(upper.seeds, lower.seeds) < 2:
        return f"{better} against {baseline}: {means}; one seed makes no band."
    above, below = stretches_above(upper, lower), stretches_above(lower, upper)
    if above and not below:
        verdict = f"all seeds above all of the baseline's {_stretches(above)}"
    elif below and not above:
        verdict = f"all seeds **below** all of the baseline's {_stretches(below)}"
    elif above and below:
        verdict = f"all seeds above {_stretches(above)}, all **below** {_stretches(below)}"
    else:
        verdict = "the bands touch everywhere"
    return f"{better} against {baseline}: {verdict}; {means}."


def _stretches(stretches: Sequence[tuple[float, float]]) -> str:
    return " and ".join(f"from {a:.0f} to {b:.0f} s" for a, b in stretches)


def _caption(family: Family, end: float, unit: str) -> str:
    probe = family.probe
    return (
        f"Held-out reward after equal training ({end:.0f} {unit} is what all runs have): mean over seeds, lowest and "
        f"highest seed in brackets; *strict* and what follows are at the end. {probe.prompts} held-out prompts × "
        f"{probe.seeds_per_prompt} fixed noises, {probe.steps} steps with noise level {probe.noise_level:g}, "
        f"guidance {probe.guidance:g}."
    )


def _cells(found: Band) -> list[str]:
    rows = zip(found.mean, found.low, found.high, strict=True)
    return [f"{mean:.3f} ({low:.3f}–{high:.3f})" for mean, low, high in rows]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
