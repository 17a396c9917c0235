"""``difalign pipelines`` and ``difalign rewards``: what can be named in a configuration."""

from __future__ import annotations

from collections.abc import Sequence

import typer

from difalign.build.cards import Found, PipelineCard, RewardCard, list_pipelines, list_rewards
from difalign.cli import rewards_worker
from difalign.cli.rewards_serve import serve
from difalign.cli.settings import clear_failure

pipelines_app = typer.Typer(no_args_is_help=True, help="Generative models that can be aligned.")
rewards_app = typer.Typer(no_args_is_help=True, help="Rewards that they can be aligned with.")

# A group of one command would otherwise be that command.
pipelines_app.callback()(lambda: None)
rewards_app.callback()(lambda: None)
rewards_app.command()(serve)
rewards_app.add_typer(rewards_worker.app, name="worker")


@pipelines_app.command("list")
def list_pipeline_cards() -> None:
    """List the pipelines that can be named by ``pipeline=``."""
    with clear_failure():
        found = list_pipelines()
    _table(["name", "steps", "guidance", "licence", "what it is"], [_pipeline_row(card) for card in found])


@rewards_app.command("list")
def list_reward_cards() -> None:
    """List the rewards that can be named under ``rewards:``."""
    with clear_failure():
        found = list_rewards()
    _table(["name", "options", "licence", "what it is"], [_reward_row(card) for card in found])


def _pipeline_row(found: Found[PipelineCard]) -> list[str]:
    card = found.card
    return [card.name, str(card.steps), f"{card.guidance:g}", card.licence, card.summary]


def _reward_row(found: Found[RewardCard]) -> list[str]:
    card = found.card
    options = ", ".join(f"{name}={value}" for name, value in card.options.items())
    return [card.name, options, card.licence, card.summary]


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(*columns, box=box.SIMPLE)
    for row in rows:
        table.add_row(*row)
    Console().print(table)
