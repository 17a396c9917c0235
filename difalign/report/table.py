"""The result of a run as a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from difalign.report.words import count, interval, score, signed, verdict

if TYPE_CHECKING:
    from rich.table import Table

_STYLES = {"above 0": "green", "below 0": "red"}


def summary_table(summary: Mapping[str, Any]) -> Table:
    """One row a kind of prompt and one for all together: base, tuned, gain, interval, and what it says."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title="Held-out score before and after training", title_justify="left")
    table.add_column("prompts")
    for name in ("n", "base", "tuned", "gain"):
        table.add_column(name, justify="right")
    table.add_column("95 % interval", justify="right")
    table.add_column("the gain is")

    def add(name: str, row: Mapping[str, Any], bounds: object, *, style: str = "") -> None:
        says = verdict(bounds)
        cells = [count(row.get("n")), score(row.get("base")), score(row.get("tuned")), signed(row.get("gain"))]
        # Text, because a name in brackets would be taken for markup.
        table.add_row(Text(name), *cells, interval(bounds), Text(says, style=_STYLES.get(says, "")), style=style)

    for kind, row in summary.get("per_category", {}).items():
        add(kind, row, row.get("ci95"))
    table.add_section()
    add("all", {**summary, "n": summary.get("prompts")}, summary.get("gain_ci95"), style="bold")
    return table
