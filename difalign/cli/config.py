"""``difalign config``: see, check, compare and describe configurations without starting anything."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated

import typer

from difalign.cli.settings import check_run, clear_failure, read_config, read_keys
from difalign.cli.train import SETTINGS_CONTEXT, ConfigOption, SettingsArgument
from difalign.core.config import RunConfig
from difalign.core.config_diff import ABSENT, Difference, differences
from difalign.core.config_yaml import to_yaml

app = typer.Typer(no_args_is_help=True, help="See and check configurations.")


@app.command(context_settings=SETTINGS_CONTEXT)
def show(config: ConfigOption = None, settings: SettingsArgument = None) -> None:
    """Print the whole configuration of a run as YAML, every default filled in."""
    with clear_failure():
        typer.echo(to_yaml(read_config(config, settings or [])), nl=False)


@app.command(context_settings=SETTINGS_CONTEXT)
def validate(config: ConfigOption = None, settings: SettingsArgument = None) -> None:
    """Check everything that ``train`` checks before it loads a model."""
    with clear_failure():
        inputs = check_run(read_config(config, settings or []))
    run = inputs.config
    rows = run.prompts_per_rollout * run.sampling.samples_per_prompt
    parts = run.training.trajectories_per_update
    updates = f"{run.training.updates_per_rollout} updates" if parts is None else f"updates of {parts} trajectories"
    typer.echo(
        f"ok: {inputs.pipeline.card.name} with {', '.join(inputs.rewards)}; a rollout is {run.prompts_per_rollout} of "
        f"{len(inputs.train_prompts)} prompts, {rows} walks of {run.sampling.steps} steps in groups of "
        f"{run.group_size}, {updates}; {len(inputs.heldout_prompts)} held-out "
        f"prompts; output in {run.run_folder}"
    )


@app.command()
def diff(
    first: Annotated[str, typer.Argument(metavar="A", help="A YAML file, a shipped name, or the folder of a run.")],
    second: Annotated[str, typer.Argument(metavar="B", help="What to compare it with.")],
    resolved: Annotated[bool, typer.Option("--resolved", help="Compare with every default filled in.")] = False,
) -> None:
    """List the keys in which two configurations differ, with both values."""
    with clear_failure():
        trees = [read_keys(name, resolved=resolved) for name in (first, second)]
    found = differences(*trees)
    if not found:
        typer.echo("no difference")
        return
    _show_differences(first, second, found)


def _show_differences(first: str, second: str, found: Sequence[Difference]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("key", first, second, box=box.SIMPLE)
    for pair in found:
        table.add_row(*(Text(text) for text in (pair.key, _shown(pair.first), _shown(pair.second))))
    Console().print(table)


def _shown(value: object) -> str:
    """A value in one line, as YAML reads it; a dash where there is none."""
    if value is ABSENT:
        return "–"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


@app.command()
def schema() -> None:
    """Print the JSON schema of a configuration, for editors that complete YAML."""
    typer.echo(json.dumps(RunConfig.model_json_schema(), indent=2))
