"""``difalign score``: pictures and prompts to a table of scores, a summary, and a page to look at."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from difalign.build.definitions import is_path
from difalign.cli.settings import clear_failure
from difalign.core.errors import ConfigError
from difalign.core.user_path import user_path

if TYPE_CHECKING:
    from difalign.build.picture_files import PictureFile
    from difalign.build.score_pictures import Scorer
    from difalign.core.config_rewards import RewardConfig
    from difalign.core.prompts import Prompt
    from difalign.report.score_page import Scores
    from difalign.report.score_table import ScoredPicture

Show = Callable[[str, int, int], None]  # what is done, how many, of how many
_COLUMNS = {  # heading -> what the page calls it
    "mean": "mean",
    "95 % interval": "95 % interval",
    "in prompts": "within a prompt",
    "lowest": "lowest",
    "highest": "highest",
}
_VERSUS = ("score", "base", "tuned", "gain", "95 % interval", "win rate")

PicturesArgument = Annotated[
    list[str], typer.Argument(metavar="PICTURES...", help="A folder, a pattern such as 'out/*.png', or files.")
]
PromptsOption = Annotated[
    str,
    typer.Option(
        "--prompts",
        "-p",
        metavar="P",
        help="One text for all; a .txt with a line a picture; a .jsonl, .csv or .parquet with the columns prompt and, "
        "unless rows go by order, image; or a folder with a STEM.txt for each picture.",
    ),
]
RewardOption = Annotated[
    list[str], typer.Option("--reward", "-r", metavar="R", help="A reward's name or card; may be repeated.")
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="R.OPTION=VALUE", help="An option of a reward, as a YAML value.")
]
AgainstOption = Annotated[
    str | None,
    typer.Option("--against", metavar="BASE", help="Pictures of another model, of the same names, to compare with."),
]
OutputOption = Annotated[
    str | None, typer.Option("--output", "-o", metavar="F", help="The table: .csv, .jsonl or .parquet.")
]
ReportOption = Annotated[
    str | None,
    typer.Option("--report", metavar="FOLDER", help="A page with histograms, and grids of the best and worst."),
]
BatchOption = Annotated[int, typer.Option("--batch", min=1, help="Pictures scored at once; memory only.")]
DeviceOption = Annotated[str, typer.Option("--device", help="Where rewards compute.")]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Of the bootstrap.")]


def score(
    pictures: PicturesArgument,
    *,
    prompts: PromptsOption,
    reward: RewardOption,
    set_: SetOption = None,
    against: AgainstOption = None,
    output: OutputOption = None,
    report: ReportOption = None,
    batch: BatchOption = 16,
    device: DeviceOption = "cpu",
    seed: SeedOption = 0,
) -> None:
    """Score pictures against prompts with one or several rewards."""
    with clear_failure(), _progress() as show:
        from difalign.build.picture_files import conversion_notice, find_pictures
        from difalign.build.picture_prompts import match_prompts
        from difalign.build.score_pictures import check_device, check_prompts, find_scorers

        _check_outputs(output, report)
        check_device(device)
        scorers = find_scorers(_configs(reward, set_ or []))
        found = find_pictures(pictures, progress=lambda done, total: show("reading", done, total))
        asked = match_prompts(found, prompts)
        base = [] if against is None else _partners(found, against, show)
        check_prompts(scorers, asked)
        notice = conversion_notice([*found, *base])
        if notice is not None:
            typer.echo(notice, err=True)
        scored = _scored(scorers, found, asked, show, device=device, batch=batch)
        before = _scored(scorers, base, asked, show, device=device, batch=batch, side="base ") if base else []
        scores = _scores(scored, before, list(scorers), pictures=pictures, against=against, notice=notice)
        _write(scores, output=output, report=report, seed=seed)


def _configs(rewards: Sequence[str], settings: Sequence[str]) -> dict[str, RewardConfig]:
    """Every reward with its options, as under ``rewards:`` of a run."""
    from difalign.core.config_errors import checked, did_you_mean
    from difalign.core.config_rewards import RewardConfig
    from difalign.core.overrides import parse_overrides

    names = {Path(reward).stem.replace("_", "-") if is_path(reward) else reward: reward for reward in rewards}
    options = parse_overrides(settings)
    for name, given in options.items():
        if name not in names or not isinstance(given, dict):
            hint = did_you_mean(name, list(names))
            raise ConfigError(f"--set {name}: must begin with a reward, then name its option; {hint}")
    return {
        name: checked(RewardConfig, {"card": card, "options": options.get(name, {})}, source=f"reward {name!r}")
        for name, card in names.items()
    }


def _check_outputs(output: str | None, report: str | None) -> None:
    from difalign.report.score_table import check_table

    if output is not None:
        try:
            check_table(user_path(output))
        except ValueError as error:
            raise ConfigError(f"--output {error}") from None
    if report is not None and user_path(report).is_file():
        raise ConfigError(f"--report {report}: is a file; give a folder")


def _partners(pictures: Sequence[PictureFile], against: str, show: Show) -> list[PictureFile]:
    """The other model's picture of each, by name.

    Raises:
        ConfigError: naming what has no partner.
    """
    from difalign.build.picture_files import find_pictures

    found = find_pictures([against], progress=lambda done, total: show("reading base", done, total))
    by_name = {picture.name: picture for picture in found}
    missing = [picture.name for picture in pictures if picture.name not in by_name]
    extra = sorted(by_name.keys() - {picture.name for picture in pictures})
    if missing or extra:
        lonely = f"{missing[0]} is not in {against}" if missing else f"{extra[0]} is only in {against}"
        raise ConfigError(
            f"--against {against}: {len(missing) + len(extra)} pictures have no partner ({lonely}); both folders must "
            "hold pictures of the same prompts under the same names"
        )
    return [by_name[picture.name] for picture in pictures]


def _scored(
    scorers: Mapping[str, Scorer],
    pictures: Sequence[PictureFile],
    prompts: Sequence[Prompt],
    show: Show,
    *,
    device: str,
    batch: int,
    side: str = "",
) -> list[ScoredPicture]:
    from difalign.build.score_pictures import score_pictures

    def progress(reward: str, done: int, total: int) -> None:
        show(f"{side}{reward}", done, total)

    return score_pictures(scorers, pictures, prompts, device=device, batch=batch, progress=progress)


def _scores(
    scored: Sequence[ScoredPicture],
    base: Sequence[ScoredPicture],
    rewards: Sequence[str],
    *,
    pictures: Sequence[str],
    against: str | None,
    notice: str | None,
) -> Scores:
    from difalign.report.score_page import Scores

    failed = sum(bool(picture.errors) for picture in (*scored, *base))
    notices = [notice] if notice is not None else []
    if failed:
        first = next(picture for picture in (*scored, *base) if picture.errors)
        why = next(iter(first.errors.items()))
        notices.append(f"{failed} pictures lack a score, the first {first.image} ({why[0]}: {why[1]})")
    title = _name(pictures[0]) if len(pictures) == 1 else "pictures"
    other = _name(against) if against is not None else ""
    if title == other:  # as in runs/a/samples and runs/b/samples
        title, other = pictures[0], against or ""
    return Scores(title, scored, rewards, other, base, notices)


def _name(source: str) -> str:
    return user_path(source).name or source


def _write(scores: Scores, *, output: str | None, report: str | None, seed: int) -> None:
    """The tables and the page, then what they say in short."""
    from difalign.build.picture_files import open_picture
    from difalign.report.score_page import write_score_report
    from difalign.report.score_table import write_table

    for line in scores.notices[-1:] if any(picture.errors for picture in scores.pictures) else ():
        typer.echo(line, err=True)
    _show(scores, seed=seed)
    if output is not None:
        path = user_path(output)
        write_table(path, scores.pictures)
        typer.echo(f"scores: {path}")
        if scores.base:
            beside = path.with_stem(f"{path.stem}_base")
            write_table(beside, scores.base)
            typer.echo(f"scores of {scores.base_title}: {beside}")
    if report is not None:
        page = write_score_report(user_path(report), scores, seed=seed, open_picture=lambda p: open_picture(p.image))
        typer.echo(f"report: {page}")


def _show(scores: Scores, *, seed: int) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from difalign.report.score_page import comparison_rows, summary_rows
    from difalign.report.words import FEW_PROMPTS

    console, few = Console(), False
    table = Table("score", *_COLUMNS, box=box.SIMPLE, pad_edge=False)
    for name, cells in summary_rows(scores, seed=seed):
        table.add_row(name, *(dict(cells)[column] for column in _COLUMNS.values()))
    versus = Table(*_VERSUS, box=box.SIMPLE, pad_edge=False)
    for row in comparison_rows(scores, seed=seed):
        few = few or row.few
        versus.add_row(row.name, row.base, row.tuned, row.gain, row.interval, row.win_rate)
    for title, shown in ((f"{scores.title}: {scores.size}", table), (f"against {scores.base_title}:", versus)):
        if shown.row_count:
            typer.echo(title)
            console.print(shown)
    if few:
        typer.echo(f"with fewer than {FEW_PROMPTS} prompts the intervals are too narrow; read them with care")


@contextmanager
def _progress() -> Iterator[Show]:
    """A bar on a terminal's standard error, nothing elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task("", total=None)

        def show(text: str, done: int, total: int) -> None:
            bars.update(task, description=text, completed=done, total=total)

        yield show
