"""What ``difalign search --dry-run`` prints: who is alive when, what that costs, and the memory it takes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from difalign.build.search_task import SearchTask

_FLOAT32 = 4  # bytes


def show_plan(task: SearchTask) -> None:
    """Print the forecast of a prompt and of all of them."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    inputs, plan, walk = task.inputs, task.plan, task.walk
    console = Console()
    typer.echo(
        f"{inputs.pipeline.card.name}, {inputs.method}: {plan.candidates} candidates a prompt, {plan.finished} finished"
        f"; {walk.num_steps} steps of {walk.branches} evaluations a row"
    )
    looks = {check.step: check for check in walk.checks}
    steps = Table("step", "sigma", "alive", "look", box=box.SIMPLE, title="Alive by step", title_justify="left")
    for step, alive in enumerate(plan.alive):
        if step in (0, walk.num_steps - 1) or step in looks or plan.alive[step - 1] != alive:
            steps.add_row(str(step), f"{float(task.grid.sigma[step]):.4f}", str(alive), _look(task, step))
    console.print(steps)
    costs = Table("", "a prompt", f"{len(inputs.mine)} prompts", box=box.SIMPLE, title="Cost", title_justify="left")
    for name, value in costs_of(task).items():
        costs.add_row(name, _number(value), _number(value * len(inputs.mine)))
    console.print(costs)
    for name, size in memory_of(task).items():
        typer.echo(f"{name}: {size / 1e6:,.1f} MB")


def costs_of(task: SearchTask) -> dict[str, float]:
    """The cost of one prompt, by name."""
    from difalign.build.search_run import foretold_seconds

    cost, tflops = task.plan.cost, task.prices.of.get("tflops")
    named: dict[str, float] = {
        "evaluations of the network (NFE)": cost.nfe,
        "decodes": cost.decodes,
        "scores": cost.scores,
        "  of which previews": cost.previews,
    }
    if tflops is not None:
        named["TFLOPs"] = tflops.of(cost)
    return {**named, "seconds": foretold_seconds(task)}


def memory_of(task: SearchTask) -> dict[str, float]:
    """Bytes by what they hold; what a forward needs besides is measured on an accelerator and not known on a CPU."""
    settings = task.inputs.settings
    together = min(settings.prompts_in_flight, len(task.inputs.mine))
    latent: Any = getattr(task.pipeline, "latent_shape", None)
    sizes = {"weights": float(_weights(task))}
    if latent is not None:
        states = 3 * together * task.plan.candidates * math.prod(latent) * _FLOAT32  # before, after, and what is read
        sizes["latents of the candidates in flight"] = float(states)
    if task.prices.peak_bytes is not None:
        sizes[f"peak of the device at {task.prices.rows} rows"] = float(task.prices.peak_bytes)
    return sizes


def _weights(task: SearchTask) -> int:
    from torch import nn

    pipe = getattr(task.pipeline, "diffusers_pipeline", None)
    parts: list[object] = [task.pipeline.network, *(pipe.components.values() if pipe is not None else ())]
    for judge in (task.reward, task.judge):
        terms = getattr(judge, "terms", None)
        rewards = [judge] if terms is None else [term.reward for term in terms.values()]
        parts += [getattr(reward, "model", None) for reward in rewards]
    modules = [part for part in parts if isinstance(part, nn.Module)]
    tensors = {id(p): p.numel() * p.element_size() for module in modules for p in module.parameters()}
    return sum(tensors.values())


def _look(task: SearchTask, step: int) -> str:
    check = next((check for check in task.walk.checks if check.step == step), None)
    if check is None:
        return ""
    keep = f"keep {check.keep}"
    if not task.walk.scored:
        return f"{keep}, at random"
    read = " and ".join(check.reading.sources)
    return f"{keep}, {task.inputs.previewed_by} reads the {read} {'pictures' if check.reading.decoded else 'latents'}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.4g}"
