"""The command behind ``train_flow_grpo.py``: ``difalign train`` without the other commands."""

from __future__ import annotations

import typer

from difalign.cli.train import SETTINGS_CONTEXT, train


def main() -> None:
    """Parse the command line, check everything that needs no model, and train."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(context_settings=SETTINGS_CONTEXT)(train)
    app()
