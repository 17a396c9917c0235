"""``difalign doctor``: is the installation and the machine fit for a run, and what to do where it is not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from difalign.build.doctor import Finding

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]

_MARKS = {"ok": "ok", "note": "note", "problem": "PROBLEM"}
_STYLES = {"ok": "green", "note": "yellow", "problem": "bold red"}


def doctor(as_json: JsonOption = False) -> None:
    """Check versions, devices, memory, disk and cache; exit code 1 if something needed is broken."""
    from difalign.build.doctor import examine

    findings = examine()
    problems = sum(finding.level == "problem" for finding in findings)
    if as_json:
        typer.echo(json.dumps(_as_json(findings), indent=2))
    else:
        _show(findings)
        notes = sum(finding.level == "note" for finding in findings)
        typer.echo(f"{_count(problems, 'problem')}, {_count(notes, 'note')}")
    if problems:
        raise typer.Exit(1)


def _as_json(findings: Sequence[Finding]) -> dict[str, object]:
    from dataclasses import asdict

    healthy = not any(finding.level == "problem" for finding in findings)
    return {"healthy": healthy, "findings": [asdict(finding) for finding in findings]}


def _show(findings: Sequence[Finding]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("", "what", "found", "remedy", box=box.SIMPLE)
    for finding in findings:
        mark = Text(_MARKS[finding.level], style=_STYLES[finding.level])
        table.add_row(mark, Text(finding.subject), Text(finding.found), Text(finding.remedy))
    Console().print(table)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
