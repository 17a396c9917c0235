"""``difalign search``, and the same under ``accelerate launch -m difalign.cli.search``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from difalign.build.search_methods import METHODS
from difalign.build.search_preflight import ACCOUNTINGS, AGGREGATES, SAVES, prepare_search
from difalign.build.search_settings import SearchSettings
from difalign.cli.settings import clear_failure, is_first_process

if TYPE_CHECKING:
    from difalign.build.search_run import Outcome

PARTIAL = 3  # exit code: some prompts have no winner, and are listed
STOPPED = 130  # 128 + SIGINT, as a shell reports it
_SHOWN = 5

_PROMPTS, _SEARCH, _BUDGET, _MODEL, _RUN = "Prompts", "Search", "Budget of each prompt: at most one", "Model", "Run"

Pipeline = Annotated[
    str, typer.Option("--pipeline", "-p", metavar="P", help="A card's name, its path, or a diffusers folder.")
]
Lora = Annotated[
    str | None, typer.Option(metavar="FOLDER", help="Adapters of an aligned model.", rich_help_panel=_MODEL)
]
Prompts = Annotated[
    str | None, typer.Option(metavar="FILE", help=".txt, .jsonl, .csv or .parquet.", rich_help_panel=_PROMPTS)
]
Prompt = Annotated[
    list[str] | None, typer.Option(metavar="TEXT", help="A text; may be repeated.", rich_help_panel=_PROMPTS)
]
Shard = Annotated[
    str | None, typer.Option(metavar="I/N", help="Only every Nth prompt from the Ith on.", rich_help_panel=_PROMPTS)
]
MethodName = Annotated[
    str | None, typer.Option(metavar="M", help=f"One of {', '.join(METHODS)}.", rich_help_panel=_SEARCH)
]
Stages = Annotated[
    str | None, typer.Option(metavar="SIGMA:KEEP[:BRANCH],...", help="Falling in sigma.", rich_help_panel=_SEARCH)
]
Reward = Annotated[
    str | None, typer.Option("--reward", "-r", metavar="NAME[:WEIGHT],...", help="Decides.", rich_help_panel=_SEARCH)
]
Aggregate = Annotated[str, typer.Option(metavar="A", help=f"One of {', '.join(AGGREGATES)}.", rich_help_panel=_SEARCH)]
Preview = Annotated[
    str | None, typer.Option(metavar="NAME[:WEIGHT],...", help="Judges estimates.", rich_help_panel=_SEARCH)
]
N = Annotated[int | None, typer.Option("--n", metavar="N", help="Candidates.", rich_help_panel=_BUDGET)]
Nfe = Annotated[float | None, typer.Option(metavar="X", help="Evaluations of the network.", rich_help_panel=_BUDGET)]
Tflops = Annotated[float | None, typer.Option(metavar="X", help="10^12 operations.", rich_help_panel=_BUDGET)]
Seconds = Annotated[float | None, typer.Option(metavar="X", help="As measured before.", rich_help_panel=_BUDGET)]
AccountingName = Annotated[
    str, typer.Option(metavar="A", help=f"One of {', '.join(ACCOUNTINGS)}.", rich_help_panel=_BUDGET)
]
Steps = Annotated[int | None, typer.Option(metavar="T", help="Default: the card's.", rich_help_panel=_MODEL)]
Size = Annotated[str | None, typer.Option(metavar="WxH", help="Pixels; default: the card's.", rich_help_panel=_MODEL)]
Guidance = Annotated[float | None, typer.Option(metavar="W", help="Default: the card's.", rich_help_panel=_MODEL)]
Rule = Annotated[str | None, typer.Option(metavar="R", help="Of stochastic walks.", rich_help_panel=_MODEL)]
Noise = Annotated[float | None, typer.Option(metavar="A", help="Of stochastic walks.", rich_help_panel=_MODEL)]
Dtype = Annotated[str | None, typer.Option(metavar="D", help="Default: the card's.", rich_help_panel=_MODEL)]
Device = Annotated[str | None, typer.Option(metavar="D", help="Default: the launcher's.", rich_help_panel=_MODEL)]
Seed = Annotated[int, typer.Option(metavar="S", help="Of all noise.", rich_help_panel=_MODEL)]
Batch = Annotated[int, typer.Option(metavar="B", help="Rows at once; memory only.", rich_help_panel=_RUN)]
Flight = Annotated[int, typer.Option(metavar="K", help="Prompts walked together.", rich_help_panel=_RUN)]
Save = Annotated[str, typer.Option(metavar="S", help=f"One of {', '.join(SAVES)}.", rich_help_panel=_RUN)]
Out = Annotated[str | None, typer.Option("--out", "-o", metavar="FOLDER", help="Results.", rich_help_panel=_RUN)]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the search in --out.", rich_help_panel=_RUN)]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan, write nothing.", rich_help_panel=_RUN)]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.", rich_help_panel=_RUN)]


def search(  # one argument an option
    pipeline: Pipeline = "tiny-sd3",
    *,
    lora: Lora = None,
    prompts: Prompts = None,
    prompt: Prompt = None,
    shard: Shard = None,
    method: MethodName = None,
    stages: Stages = None,
    reward: Reward = None,
    aggregate: Aggregate = "weighted",
    preview: Preview = None,
    n: N = None,
    budget_nfe: Nfe = None,
    budget_tflops: Tflops = None,
    budget_seconds: Seconds = None,
    accounting: AccountingName = "exact",
    steps: Steps = None,
    size: Size = None,
    guidance: Guidance = None,
    rule: Rule = None,
    noise_level: Noise = None,
    dtype: Dtype = None,
    device: Device = None,
    seed: Seed = 0,
    micro_batch: Batch = 16,
    prompts_in_flight: Flight = 4,
    save: Save = "winner",
    out: Out = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    quiet: Quiet = False,
) -> None:
    """Start many candidates of every prompt, walk the promising ones to the end, and keep the best."""
    settings = SearchSettings(
        out=out,
        pipeline=pipeline,
        lora=lora,
        prompts=prompts,
        prompt=tuple(prompt or ()),
        method=method,
        reward=reward,
        aggregate=aggregate,
        preview=preview,
        n=n,
        budget_nfe=budget_nfe,
        budget_tflops=budget_tflops,
        budget_seconds=budget_seconds,
        accounting=accounting,
        stages=stages,
        steps=steps,
        size=size,
        guidance=guidance,
        seed=seed,
        rule=rule,
        noise_level=noise_level,
        dtype=dtype,
        device=device,
        micro_batch=micro_batch,
        prompts_in_flight=prompts_in_flight,
        save=save,
        shard=shard,
        resume=resume,
        dry_run=dry_run,
    )
    with clear_failure():
        _run(settings, quiet=quiet)


def _run(settings: SearchSettings, *, quiet: bool) -> None:
    inputs = prepare_search(settings, check_output=is_first_process())

    from difalign.build.search_run import plan_search, run_search

    if settings.dry_run:
        from difalign.cli.search_plan import show_plan

        task = plan_search(inputs)
        if task is not None:
            show_plan(task)
        return
    try:
        outcome = run_search(inputs, quiet=quiet)
    except KeyboardInterrupt:
        typer.echo(f"stopped: what is done lies in {inputs.out}; go on with the same command and --resume", err=True)
        raise typer.Exit(STOPPED) from None
    if outcome is not None:
        _say(outcome, str(inputs.out))
        if outcome.run.failures:
            raise typer.Exit(PARTIAL)


def _say(outcome: Outcome, out: str) -> None:
    """The end of a run in a few lines; the first failures among them."""
    totals, failures = outcome.run.totals, outcome.run.failures
    scores = [line.winner.score for line in outcome.lines if line.winner is not None]
    if scores:
        typer.echo(f"{len(scores)} winners, mean {sum(scores) / len(scores):.4g}; {totals.cost.nfe} evaluations: {out}")
    if outcome.unscored:
        typer.echo(f"{outcome.unscored} finished samples have no score; scores.json says why", err=True)
    for failure in failures[:_SHOWN]:
        typer.echo(f"failed: {failure.prompt!r}: {failure.error}", err=True)
    if len(failures) > _SHOWN:
        typer.echo(f"... and {len(failures) - _SHOWN} more, listed in run.json", err=True)


def main() -> None:
    """The command alone, as a launcher starts it."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(search)
    app()


if __name__ == "__main__":
    main()
