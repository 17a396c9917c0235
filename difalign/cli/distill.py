"""``difalign distill``, and the same under ``accelerate launch -m difalign.cli.distill``."""

from __future__ import annotations

from typing import Annotated

import typer

from difalign.build.definitions import find_definition
from difalign.build.distill_inputs import STAGES, prepare_distill
from difalign.cli.settings import clear_failure
from difalign.cli.train import SETTINGS_CONTEXT, SettingsArgument
from difalign.core.config_distill import load_distill_config
from difalign.core.config_errors import did_you_mean
from difalign.core.errors import ConfigError

CONFIGS = "configs/distill"
DEFAULT_CONFIG = "tiny"

ConfigOption = Annotated[
    str, typer.Option("--config", "-c", metavar="F", help="A YAML file, or the name of a shipped one.")
]
StageOption = Annotated[
    list[str] | None, typer.Option("--stage", metavar="S", help=f"One of {', '.join(STAGES)}; repeatable; default all.")
]


def distill(
    config: ConfigOption = DEFAULT_CONFIG, stage: StageOption = None, settings: SettingsArgument = None
) -> None:
    """Teach copies of a reward to read unfinished samples; what is done already is not done again."""
    with clear_failure():
        stages = _stages(stage or [])
        try:
            file = find_definition(CONFIGS, config)
        except ConfigError as error:
            raise ConfigError(f"--config {error}") from None
        inputs = prepare_distill(load_distill_config(file, settings or []))

        from difalign.build.distill import run_distill

        run_distill(inputs, stages)


def _stages(wanted: list[str]) -> tuple[str, ...]:
    """The stages that were asked for, in their order."""
    for name in wanted:
        if name not in STAGES:
            raise ConfigError(f"--stage {name!r}: {did_you_mean(name, STAGES)}")
    return tuple(name for name in STAGES if name in wanted or not wanted)


def main() -> None:
    """The command alone, as a launcher starts it."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(context_settings=SETTINGS_CONTEXT)(distill)
    app()


if __name__ == "__main__":
    main()
