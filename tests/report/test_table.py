from __future__ import annotations

import io

from rich.console import Console

from difalign.report.table import summary_table


def rendered(summary: dict[str, object]) -> str:
    console = Console(file=io.StringIO(), width=140)
    console.print(summary_table(summary))
    output = console.file
    assert isinstance(output, io.StringIO)
    return output.getvalue()


def test_every_kind_and_all_together_with_what_the_interval_says() -> None:
    kinds = {
        "single [x]": {"base": 0.9, "tuned": 0.92, "gain": 0.02, "ci95": [-0.01, 0.05], "n": 50},
        "count": {"base": 0.2, "tuned": 0.4, "gain": 0.2, "ci95": [0.1, 0.3], "n": 50},
    }
    summary = {"base": 0.55, "tuned": 0.66, "gain": 0.11, "gain_ci95": [0.05, 0.16], "prompts": 100}
    lines = rendered({**summary, "per_category": kinds}).splitlines()
    (single,) = [line for line in lines if "single [x]" in line]
    assert "not distinguishable from 0" in single
    (count,) = [line for line in lines if "count" in line]
    assert "+0.200" in count
    assert "+0.100 to +0.300" in count
    assert "above 0" in count
    (overall,) = [line for line in lines if "│ all" in line]
    assert "100" in overall
    assert "0.550" in overall


def test_a_summary_without_figures_has_dashes() -> None:
    assert "–" in rendered({})
    assert "nan" not in rendered({"gain": float("nan"), "base": float("nan")})
