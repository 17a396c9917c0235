"""``difalign rewards list|show|check|verify``: what can be named, and whether it is whole and right."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from difalign.build.cards import Found, RewardCard, list_rewards, load_reward_card
from difalign.build.entry_points import entry_point_names
from difalign.cli.settings import clear_failure

if TYPE_CHECKING:
    from difalign.build.reward_check import CheckResult

_COLUMNS = ["name", "range", "gradient", "needs", "licence", "here"]

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="A reward's name, or the path of a card.")]
NamesArgument = Annotated[
    list[str] | None, typer.Argument(metavar="[NAME]...", help="Rewards, or paths of cards; all by default.")
]
WriteOption = Annotated[
    bool, typer.Option("--write", help="For developers: store the values beside the cards of a checkout.")
]
DeviceOption = Annotated[str, typer.Option("--device", help="Where rewards compute.")]


def list_reward_cards() -> None:
    """List the rewards that can be named under ``rewards:``."""
    with clear_failure():
        found = list_rewards()
        names = [card.card.name for card in found]
        entries = [(_row(card), card.card.summary) for card in found]
        entries += [
            ([name, "", "", "", "", "yes"], f"of another package: difalign rewards show {name}")
            for name in entry_point_names()
            if name not in names
        ]
    widths = [max(len(row[index]) for row in (_COLUMNS, *(row for row, _ in entries))) for index in range(6)]
    for row, summary in [(_COLUMNS, ""), *entries]:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        if summary:
            typer.echo(f"    {summary}")


def show(name: NameArgument) -> None:
    """Show everything that a reward's card says, and what is missing here."""
    from difalign.cli.tables import show_table

    with clear_failure():
        found = load_reward_card(name)
    show_table(["key", "value"], [list(row) for row in _facts(found)])


def check(names: NamesArgument = None, *, write: WriteOption = False, device: DeviceOption = "cpu") -> None:
    """Score fixed pictures with every reward that can run offline, and compare with the stored values.

    Exit code 1 if a reward that can run fails; those that cannot are listed with what they lack.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"  # a check neither downloads nor waits for a network
    with clear_failure():
        from difalign.build.reward_check import check_reward, read_stored, write_stored
        from difalign.build.reward_files import addresses

        cards = [load_reward_card(name) for name in names] if names else [*list_rewards(), *_of_other_packages()]
        stored = read_stored()
        results: list[CheckResult] = []
        for found in cards:
            results.append(check_reward(found, None if write else stored, device=device))
            _say(results[-1])
        counts = {word: sum(result.status == word for result in results) for word in ("ok", "failed", "skipped")}
        typer.echo(", ".join(f"{count} {word}" for word, count in counts.items()))
        if write:
            # What a server says is its own, and another's tomorrow.
            own = [result for found, result in zip(cards, results, strict=True) if not addresses(found.card)]
            typer.echo(f"stored: {write_stored(own)}")
    if counts["failed"]:
        raise typer.Exit(1)


def verify(names: NamesArgument = None) -> None:
    """Check that the files of rewards' weights are there and have the hashes that their cards state.

    Exit code 1 if a file is missing or is another than it should be.
    """
    with clear_failure():
        from difalign.build.reward_files import verify_files

        cards = [load_reward_card(name) for name in names] if names else list_rewards()
        problems = 0
        for found in cards:
            files = verify_files(found)
            if not files:
                typer.echo(f"{found.card.name}: has no weights")
            for file in files:
                problems += file.problem is not None
                if file.problem is not None:
                    typer.echo(f"{found.card.name}: PROBLEM {file.path or file.name}: {file.problem}")
                else:
                    verdict = "as stated" if file.stated else "no hash is stated"
                    typer.echo(f"{found.card.name}: ok {file.path} SHA-256 {file.sha256}, {verdict}")
    if problems:
        raise typer.Exit(1)


def _of_other_packages() -> list[Found[RewardCard]]:
    return [load_reward_card(name) for name in entry_point_names()]


def _row(found: Found[RewardCard]) -> list[str]:
    card = found.card
    needs = ", ".join([*card.needs, *(["the group"] if card.groupwise else [])])
    return [
        card.name,
        bounds(card),
        "yes" if card.differentiable else "no",
        needs,
        card.licence,
        _readiness(found),
    ]


def bounds(card: RewardCard) -> str:
    """The least and the greatest score that can be, as an interval; an open end is an ellipsis."""
    if card.bounds is None:
        return ""
    low, high = ("…" if bound is None else f"{bound:g}" for bound in card.bounds)
    return f"{low} to {high}"


def _readiness(found: Found[RewardCard]) -> str:
    from difalign.build.reward_files import addresses, expected_files, is_installed

    if any(not is_installed(module) for module in found.card.requires):
        return "needs difalign[rewards]"
    if any(file.path is None for file in expected_files(found)):
        return "needs weights"
    return "needs a server" if addresses(found.card) else "yes"


def _facts(found: Found[RewardCard]) -> Iterator[tuple[str, str]]:
    from difalign.build.reward_files import obstacles

    yield "file", str(found.file)
    for key, value in found.card.model_dump(mode="json", exclude={"options", "statistics", "scales"}).items():
        if value not in (None, [], ""):
            yield key, ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    card = found.card
    sections = {"options": card.options}
    sections |= {"statistics": card.statistics.model_dump(mode="json")} if card.statistics is not None else {}
    sections |= {f"scales.{name}": scale.model_dump(mode="json") for name, scale in card.scales.items()}
    for section, content in sections.items():
        yield from ((f"{section}.{key}", str(value)) for key, value in content.items() if value is not None)
    missing = list(obstacles(found))
    yield "runs here", "yes" if not missing else "no"
    yield from (("missing", text) for text in missing)


def _say(result: CheckResult) -> None:
    mark = {"ok": "ok", "failed": "FAILED", "skipped": "not here"}[result.status]
    facts: Sequence[str] = ()
    if result.scores:
        prompt = "reads the prompt" if result.reads_prompt else "does not read the prompt"
        facts = (f"{len(result.scores)} pictures, {min(result.scores):.4g} to {max(result.scores):.4g}, {prompt}",)
    typer.echo(f"{result.name}: {mark}: {'; '.join([*facts, *result.remarks])}")


def register(app: typer.Typer) -> None:
    """Add the commands to ``difalign rewards``."""
    app.command("list")(list_reward_cards)
    app.command("show")(show)
    app.command("check")(check)
    app.command("verify")(verify)
