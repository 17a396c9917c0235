"""The ``difalign`` command. Nothing heavy is imported until a command needs it."""

from __future__ import annotations

import typer

from difalign.cli import cards, config
from difalign.cli.compare import compare
from difalign.cli.distill import distill
from difalign.cli.doctor import doctor
from difalign.cli.plan import plan
from difalign.cli.score import score
from difalign.cli.search import search
from difalign.cli.status import status
from difalign.cli.train import SETTINGS_CONTEXT, train

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Align image and video diffusion models with rewards.",
)
app.command(context_settings=SETTINGS_CONTEXT)(train)
app.command(context_settings=SETTINGS_CONTEXT)(plan)
app.command(context_settings=SETTINGS_CONTEXT)(distill)
app.command()(search)
app.command()(score)
app.command()(compare)
app.command()(status)
app.command()(doctor)
app.add_typer(config.app, name="config")
app.add_typer(cards.pipelines_app, name="pipelines")
app.add_typer(cards.rewards_app, name="rewards")


def main() -> None:
    """Run the command line."""
    app()
