"""``difalign pipelines`` and ``difalign rewards``: what can be named in a configuration."""

from __future__ import annotations

import typer

from difalign.build.cards import Found, PipelineCard, list_pipelines
from difalign.cli import rewards, rewards_worker
from difalign.cli.rewards_serve import serve
from difalign.cli.settings import clear_failure
from difalign.cli.tables import show_table

pipelines_app = typer.Typer(no_args_is_help=True, help="Generative models that can be aligned.")
rewards_app = typer.Typer(no_args_is_help=True, help="Rewards that they can be aligned with.")

# A group of one command would otherwise be that command.
pipelines_app.callback()(lambda: None)
rewards_app.callback()(lambda: None)


@pipelines_app.command("list")
def list_pipeline_cards() -> None:
    """List the pipelines that can be named by ``pipeline=``."""
    with clear_failure():
        found = list_pipelines()
    show_table(["name", "steps", "guidance", "licence", "what it is"], [_pipeline_row(card) for card in found])


rewards.register(rewards_app)
rewards_app.command()(serve)
rewards_app.add_typer(rewards_worker.app, name="worker")


def _pipeline_row(found: Found[PipelineCard]) -> list[str]:
    card = found.card
    return [card.name, str(card.steps), f"{card.guidance:g}", card.licence, card.summary]
