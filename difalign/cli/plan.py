"""``difalign plan``: what a run will do on 1, 2, 8 and 48 processes, before any model is loaded."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from difalign.build.preflight import Inputs, prepare
from difalign.cli.settings import clear_failure, read_config
from difalign.cli.train import ConfigOption, SettingsArgument
from difalign.core.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from difalign.build.forecast import ProcessForecast, RunForecast
    from difalign.core.config import RunConfig
    from difalign.core.config_plans import CurriculumConfig
    from difalign.core.types import Plan

_PROCESSES = "1,2,8,48"

ProcessesOption = Annotated[
    str, typer.Option("--processes", "-p", metavar="N,...", help="Numbers of processes, one column each.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


@dataclass(frozen=True, slots=True)
class _Forecasts:
    latent: tuple[int, int, int] | None
    run: RunForecast
    processes: dict[int, ProcessForecast]
    impossible: dict[int, str]  # number of processes -> why


def plan(
    config: ConfigOption = None,
    settings: SettingsArgument = None,
    processes: ProcessesOption = _PROCESSES,
    as_json: JsonOption = False,
) -> None:
    """Count what a run will do, for several numbers of processes, before any model is loaded."""
    with clear_failure():
        counts = _read_counts(processes)
        inputs = prepare(read_config(config, settings or []), check_output=False, check_weights=False)
    forecasts = _forecast(inputs, counts)
    if as_json:
        typer.echo(json.dumps(_as_json(forecasts), indent=2))
    else:
        _show(inputs, forecasts)


def _read_counts(text: str) -> tuple[int, ...]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words or not all(word.isdecimal() and int(word) for word in words):
        raise ConfigError(f"--processes {text!r}: must be numbers of processes, such as --processes {_PROCESSES}")
    return tuple(dict.fromkeys(int(word) for word in words))


def _forecast(inputs: Inputs, counts: Sequence[int]) -> _Forecasts:
    from difalign.build.forecast import forecast_process, forecast_run
    from difalign.build.latents import latent_shape
    from difalign.build.plans import build_plans

    config = inputs.config

    def schedule(rollout: int) -> tuple[Plan, ...]:
        return build_plans(config, rollout=rollout)

    latent = latent_shape(inputs.pipeline, height=config.sampling.height, width=config.sampling.width)
    kind = inputs.pipeline.card.guidance_kind
    run = forecast_run(config, schedule, heldout=len(inputs.heldout_prompts), guidance_kind=kind)
    possible: dict[int, ProcessForecast] = {}
    impossible: dict[int, str] = {}
    for count in counts:
        try:
            possible[count] = forecast_process(config, schedule, processes=count, latent_shape=latent)
        except ValueError as error:
            impossible[count] = str(error)
    return _Forecasts(latent, run, possible, impossible)


def _as_json(forecasts: _Forecasts) -> dict[str, object]:
    from difalign.build.forecast import as_mapping

    return {
        "latent_shape": None if forecasts.latent is None else list(forecasts.latent),
        "run": as_mapping(forecasts.run),
        "processes": {str(count): as_mapping(forecast) for count, forecast in forecasts.processes.items()},
        "impossible": {str(count): reason for count, reason in forecasts.impossible.items()},
    }


def _show(inputs: Inputs, forecasts: _Forecasts) -> None:
    from rich.console import Console

    config, console = inputs.config, Console()
    sides = "x".join(map(str, forecasts.latent)) if forecasts.latent is not None else "unknown until it is downloaded"
    chain = f"{config.sampling.plan.kind} plan of {config.sampling.steps} steps"
    typer.echo(f"{config.name}: {inputs.pipeline.card.name} with {', '.join(inputs.rewards)}; {chain}; latents {sides}")
    console.print(_run_table(forecasts.run))
    if forecasts.processes:
        console.print(_process_table(forecasts))
    for reason in forecasts.impossible.values():
        typer.echo(reason)
    for remark in _remarks(config):
        typer.echo(remark)


def _run_table(run: RunForecast) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE, title="The run, over all processes", title_justify="left")
    table.add_column("")
    for title in ("a rollout", "the run"):
        table.add_column(title, justify="right")
    table.add_row("prompts an update", str(run.prompts_per_update), "")
    table.add_row("group size", str(run.group_size), "")
    rows = [
        ("optimiser steps", run.updates),
        ("samples: decodes and reward calls", run.samples),
        ("denoiser forwards in sampling, rows", run.sampling_forwards),
        ("recorded edges", run.recorded_edges),
        ("rows forward and backward, at most", run.training_rows),
    ]
    if run.sampling_network_rows != run.sampling_forwards:
        rows.insert(3, ("  as the network computes them, guided", run.sampling_network_rows))
    if run.reference_rows:
        rows.append(("rows of the reference, at most", run.reference_rows))
    if run.diagnostic_rows:
        rows.append(("rows of diagnostics, at most", run.diagnostic_rows))
    for name, value in rows:
        table.add_row(name, _number(value / run.rollouts), _number(value))
    table.add_section()
    table.add_row("evaluations", "", _number(run.evaluations))
    table.add_row("  samples: decodes and reward calls", "", _number(run.evaluation_samples))
    table.add_row("  denoiser forwards, rows", "", _number(run.evaluation_forwards))
    if run.evaluation_network_rows != run.evaluation_forwards:
        table.add_row("  as the network computes them, guided", "", _number(run.evaluation_network_rows))
    table.add_row("decodes in all", "", _number(run.decodes))
    return table


_ROWS: tuple[tuple[str, Callable[[ProcessForecast], str]], ...] = (
    ("prompts an update", lambda process: _number(process.prompts_per_update)),
    ("samples", lambda process: _number(process.samples)),
    ("denoiser forwards in sampling, rows", lambda process: _number(process.sampling_forwards)),
    ("  in micro-batches", lambda process: _number(process.sampling_batches)),
    ("decodes and reward calls, micro-batches", lambda process: _number(process.scoring_batches)),
    ("recorded edges", lambda process: _number(process.recorded_edges)),
    ("forward and backward an update, micro-batches", lambda process: _number(process.training_batches)),
    ("stored latents, MB", lambda process: _megabytes(process.stored_bytes)),
    ("processes at work", lambda process: f"{process.busy:.0%}"),
)


def _process_table(forecasts: _Forecasts) -> Table:
    from rich import box
    from rich.table import Table

    title = "The busiest process, in one rollout, by number of processes"
    table = Table(box=box.SIMPLE, title=title, title_justify="left")
    table.add_column("processes")
    for count in forecasts.processes:
        table.add_column(str(count), justify="right")
    for name, show in _ROWS:
        table.add_row(name, *(show(process) for process in forecasts.processes.values()))
    return table


def _remarks(config: RunConfig) -> list[str]:
    remarks = []
    if config.training.max_seconds is not None:
        remarks.append(
            f"training.max_seconds = {config.training.max_seconds:g}: the run may stop before its last rollout"
        )
    if config.curriculum is not None:
        remarks.append(_interval_remark(config, config.curriculum))
    if config.objective.advantage.selection is not None:
        remarks.append(
            "objective.advantage.selection: rows and optimiser steps depend on what stands out, and may be fewer"
        )
    if config.objective.filter_zero_variance:
        remarks.append(
            "objective.filter_zero_variance = true: rows of groups without variance are left out of an update"
        )
    return remarks


def _interval_remark(config: RunConfig, curriculum: CurriculumConfig) -> str:
    """From where to where the interval goes in this run; it may end before the schedule does, or after."""
    last = config.training.rollouts - 1
    lengths = curriculum.length(0), curriculum.length(last)
    stages = len(curriculum.lengths) if curriculum.lengths is not None else curriculum.stages
    return (
        f"curriculum: {curriculum.schedule} over {stages} rollouts; this run has {last + 1}, and its interval goes "
        f"from the last {lengths[0]} of {config.sampling.steps} steps to the last {lengths[1]}"
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.1f}"


def _megabytes(size: int | None) -> str:
    return "unknown" if size is None else f"{size / 1e6:,.2f}"
