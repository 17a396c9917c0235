"""``difalign config``: see, check and describe a configuration without starting anything."""

from __future__ import annotations

import json

import typer

from difalign.cli.settings import check_run, clear_failure, read_config
from difalign.cli.train import SETTINGS_CONTEXT, ConfigOption, SettingsArgument
from difalign.core.config import RunConfig
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
    typer.echo(
        f"ok: {inputs.pipeline.card.name} with {', '.join(inputs.rewards)}; a rollout is {run.prompts_per_rollout} of "
        f"{len(inputs.train_prompts)} prompts, {rows} walks of {run.sampling.steps} steps in groups of "
        f"{run.group_size}, {run.training.updates_per_rollout} updates; {len(inputs.heldout_prompts)} held-out "
        f"prompts; output in {run.run_folder}"
    )


@app.command()
def schema() -> None:
    """Print the JSON schema of a configuration, for editors that complete YAML."""
    typer.echo(json.dumps(RunConfig.model_json_schema(), indent=2))
