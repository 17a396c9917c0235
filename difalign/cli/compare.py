"""``difalign compare RUN RUN``: the winners of searches against one another, prompt by prompt."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from difalign.cli.settings import clear_failure
from difalign.cli.tables import show_table
from difalign.core.errors import ConfigError
from difalign.core.user_path import user_path

if TYPE_CHECKING:
    from difalign.report.search_comparison import SearchComparison

RunsArgument = Annotated[list[str], typer.Argument(metavar="RUN RUN [RUN...]", help="Folders of searches.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
HtmlOption = Annotated[str | None, typer.Option("--html", metavar="FILE", help="Write a page as well.")]
SeedOption = Annotated[int, typer.Option("--seed", help="Of the resampling.")]


def compare(runs: RunsArgument, as_json: JsonOption = False, html: HtmlOption = None, seed: SeedOption = 0) -> None:
    """Compare searches with the first one: gains of the winners with intervals, wins, and cost."""
    from difalign.report import search_comparison

    with clear_failure():
        try:
            found = search_comparison.compare_searches([user_path(run) for run in runs], seed=seed)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        if html is not None:
            search_comparison.write_comparison(user_path(html), found)
    if as_json:
        typer.echo(json.dumps(search_comparison.as_json(found), indent=2))
    else:
        _show(found)


def _show(found: SearchComparison) -> None:
    from difalign.report.search_comparison import lines
    from difalign.report.words import FEW_PROMPTS

    typer.echo(f"{found.prompts} prompts, the same noise; gains over {found.base}, paired bootstrap")
    written = lines(found)
    for one in found.others:
        rows = [r for r in written if r.run == one.name]
        typer.echo(f"\n{one.name}: won {one.wins}, tied {one.ties}, lost {one.losses}; {rows[0].cost}")
        cells = [(r.score, r.base, r.value, r.gain, r.interval, r.verdict) for r in rows]
        show_table(("score", found.base, one.name, "gain", "95 % interval", "the gain is"), cells)
    if found.prompts < FEW_PROMPTS:
        typer.echo(f"fewer than {FEW_PROMPTS} prompts: the intervals are too narrow")
    if found.left_out:
        typer.echo("left out, without a winner in a search: " + ", ".join(found.left_out))
