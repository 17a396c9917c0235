"""``difalign status RUN``: progress, speed, time left and the last figures of a run, from its folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from difalign.cli.settings import clear_failure
from difalign.core.errors import ConfigError
from difalign.core.user_path import user_path

if TYPE_CHECKING:
    from difalign.report.status import RunStatus

RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="The folder of a run, or its name below runs/.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]

_FIGURES = (  # of the last update, in this order where they were measured
    "reward",
    "reward_std",
    "ratio_max_deviation",
    "clip_fraction",
    "approx_kl",
    "kl",
    "grad_norm",
    "zero_variance_groups",
    "learning_rate",
)


def status(run: RunArgument, as_json: JsonOption = False) -> None:
    """Show where a run stands: progress, speed, time left, last figures."""
    import time

    from difalign.report.status import run_status

    with clear_failure():
        try:
            found = run_status(_folder(run), now=time.time())
        except ValueError as error:
            raise ConfigError(str(error)) from None
    if as_json:
        typer.echo(json.dumps(_as_json(found), indent=2))
    else:
        for line in _lines(found):
            typer.echo(line)


def _folder(name: str) -> Path:
    folder = user_path(name)
    below = Path("runs") / name
    return below if not folder.exists() and below.is_dir() else folder


def _as_json(found: RunStatus) -> dict[str, object]:
    from dataclasses import asdict

    from difalign.report.log import plain

    return plain(asdict(found))


def _lines(found: RunStatus) -> list[str]:
    from difalign.report.words import compact, duration, gain_sentence, score

    lines = [f"{found.folder}: {found.name}, {_state(found)}", _progress(found)]
    speed = found.speed
    if speed.seconds_a_rollout is not None:
        rates = [f"{duration(speed.seconds_a_rollout)} a rollout"]
        rates += [f"{compact(speed.samples_a_second)} samples/s"] if speed.samples_a_second else []
        rates += [f"{compact(speed.forwards_a_second)} denoiser rows/s"] if speed.forwards_a_second else []
        lines.append("speed: " + ", ".join(rates))
    if found.remaining_seconds is not None and found.state != "finished":
        lines.append(f"left: {duration(found.remaining_seconds)} of training, then the last evaluation")
    figures = [f"{name} {compact(found.figures[name])}" for name in _FIGURES if name in found.figures]
    if figures:
        lines.append("last update: " + ", ".join(figures))
    for item in found.evaluations:
        mean = f"{score(item.score, digits=4)} over {item.samples} samples"
        lines.append(f"held-out {item.label} after {item.rollout} rollouts: {mean}")
    if found.summary:
        lines.append(gain_sentence(found.summary))
    lines += [f"alarm: {alarm}" for alarm in found.alarms]
    return [*lines, *found.problems]


def _state(found: RunStatus) -> str:
    from difalign.report.words import duration

    if found.state == "finished":
        return "finished"
    ago = duration(found.silent_seconds)
    if found.state == "running":
        return f"running, last written {ago} ago"
    return f"nothing written for {ago}: stopped or stuck"


def _progress(found: RunStatus) -> str:
    from difalign.report.words import duration

    planned = found.planned_rollouts
    share = f" of {planned} ({found.rollouts / planned:.0%})" if planned else ""
    spent = f", {duration(found.seconds)} of training" if found.seconds is not None else ""
    return f"progress: {found.rollouts}{share} rollouts, {found.updates} updates{spent}"
