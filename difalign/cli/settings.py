"""What every command that takes a configuration shares: reading it, checking it, and failing in one clear message."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import typer

from difalign.build.definitions import find_definition
from difalign.build.preflight import Inputs, prepare
from difalign.build.surroundings import read_launch
from difalign.core.config import RunConfig
from difalign.core.errors import ConfigError, ProcessLost
from difalign.core.overrides import load_config, read_tree
from difalign.core.user_path import user_path
from difalign.train.interrupt import Interrupted

CONFIGS = "configs"
DEFAULT_CONFIG = "demo"  # what no arguments mean
_RUN_CONFIG = "config.yaml"  # in the folder of a run
LOST_PROCESS = 1  # exit code of a process that ends because another of the run has
BAD_INPUT = 2  # exit code, as of every Unix tool that is called wrongly; 128 + n for a signal


@contextmanager
def clear_failure() -> Iterator[None]:
    """Turn a ConfigError into its message on stderr, from the first process only, and exit code 2 on all.

    Where a process of the run was lost, each that is left says so and ends with exit code 1.

    So too a run that SIGINT or SIGTERM has stopped, with exit code 130 or 143.
    """
    try:
        yield
    except Interrupted as stop:
        if is_first_process():
            typer.echo(f"stopped: {stop}", err=True)
        raise typer.Exit(stop.exit_code) from None
    except ProcessLost as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(LOST_PROCESS) from None
    except ConfigError as error:
        if is_first_process():
            typer.echo(f"error: {error}", err=True)
        raise typer.Exit(BAD_INPUT) from None


def read_config(config: str | None, settings: Sequence[str]) -> RunConfig:
    """The configuration of a file or of a shipped name, with ``key.sub=value`` settings applied.

    Raises:
        ConfigError: naming every problem found.
    """
    try:
        file = find_definition(CONFIGS, config if config is not None else DEFAULT_CONFIG)
    except ConfigError as error:
        raise ConfigError(f"--config {error}") from None
    return load_config(file, settings)


def read_keys(name: str, *, resolved: bool) -> Mapping[str, object]:
    """The keys of a file, of a shipped configuration or of a run's folder; with every default if ``resolved``.

    Raises:
        ConfigError: if there is no such configuration, or it cannot be read.
    """
    of_run = user_path(name) / _RUN_CONFIG
    file = of_run if of_run.is_file() else find_definition(CONFIGS, name)
    return load_config(file).model_dump(mode="json") if resolved else read_tree(file)


def check_run(config: RunConfig) -> Inputs:
    """Everything that can be checked before a model is loaded, for as many processes as were launched.

    Raises:
        ConfigError: naming every problem found.
    """
    launch = read_launch()
    return prepare(config, processes=launch.world, check_output=launch.rank == 0)


def is_first_process() -> bool:
    """Whether this is the process that speaks, of those that a launcher has started together."""
    try:
        return read_launch().rank == 0
    except ConfigError:
        return True  # a process that cannot tell which one it is must say so
