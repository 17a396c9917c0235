"""``difalign rewards worker``: environments of their own for the original scorers."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from difalign.cli.settings import clear_failure

app = typer.Typer(no_args_is_help=True, help="Environments of their own for scorers with old libraries.")

NameArgument = Annotated[str, typer.Argument(help="A recipe's name; `worker list` shows them.")]
PathOption = Annotated[Path | None, typer.Option("--path", help="The folder; default: in the user's cache.")]
PythonOption = Annotated[str | None, typer.Option("--python", help="The interpreter, where it is not on the path.")]


@app.command("list")
def list_workers() -> None:
    """List the recipes, and which of them have been made here."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from difalign.build.workers import list_recipes, worker_at

    with clear_failure():
        workers = [worker_at(recipe) for recipe in list_recipes()]
    table = Table("name", "state", "python", "port", "licence", "what it is", "tried", box=box.SIMPLE)
    for worker in workers:
        recipe = worker.recipe
        table.add_row(
            recipe.name,
            worker.state,
            recipe.python,
            str(recipe.port),
            recipe.licence,
            recipe.summary,
            recipe.tried,
        )
    Console().print(table)


@app.command("create")
def create(name: NameArgument, path: PathOption = None, python: PythonOption = None) -> None:
    """Make the environment of a scorer; an attempt that failed is gone on with."""
    from difalign.build.workers import create_worker, load_recipe, worker_at

    with clear_failure():
        worker = worker_at(load_recipe(name), path)
        create_worker(worker, say=typer.echo, interpreter=python)
    if worker.recipe.needs:
        typer.echo(f"needs: {worker.recipe.needs}")
    typer.echo(f"serve: {shlex.join(worker.command())}")
    typer.echo(f"train: rewards.remote.options.url=http://127.0.0.1:{worker.recipe.port}")


@app.command("remove")
def remove(name: NameArgument, path: PathOption = None) -> None:
    """Delete the environment of a scorer."""
    from difalign.build.workers import load_recipe, remove_worker, worker_at

    with clear_failure():
        worker = worker_at(load_recipe(name), path)
        remove_worker(worker)
    typer.echo(f"removed {worker.folder}")
