"""``difalign train``, and the same under ``accelerate launch train_flow_grpo.py``."""

from __future__ import annotations

from typing import Annotated

import typer

from difalign.cli.settings import check_run, clear_failure, read_config

ConfigOption = Annotated[
    str | None, typer.Option("--config", "-c", metavar="F", help="A YAML file, or the name of a shipped one.")
]
SettingsArgument = Annotated[
    list[str] | None, typer.Argument(metavar="[key.sub=value]...", help="Settings laid over the file, as YAML values.")
]
# Dashes before a setting reach the parser of settings, whose message says how it is written.
SETTINGS_CONTEXT = {"ignore_unknown_options": True}


def train(config: ConfigOption = None, settings: SettingsArgument = None) -> None:
    """Align a model with rewards by Flow-GRPO; without arguments, the shipped tiny model."""
    with clear_failure():
        inputs = check_run(read_config(config, settings or []))

        from difalign.build.run import run_flow_grpo

        run_flow_grpo(inputs)
