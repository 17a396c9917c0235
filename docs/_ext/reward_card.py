"""The directive ``{reward-card} NAME``: what a reward's card says, and how fast it was measured to be, as a table.

Facts stand in cards and in the benchmark's results; pages quote them by this directive and hold no copy.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from sphinx.util.docutils import SphinxDirective

from difalign.build.cards import RewardCard, load_reward_card
from difalign.cli.rewards import bounds

if TYPE_CHECKING:
    from docutils import nodes
    from sphinx.application import Sphinx

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "rewards.jsonl"


def rows(card: RewardCard, measured: dict[str, dict[str, float]]) -> Iterator[tuple[str, str]]:
    """What a page shows of a card, in Markdown."""
    yield "card", f"`{card.name}`: {card.summary}"
    yield "class", f"`{card.target}`"
    yield "licence", card.licence
    yield from _weights(card)
    yield from _demands(card)
    yield from _scale(card)
    for option, value in card.options.items():
        yield f"option `{option}`", f"`{value}`"
    speeds = measured.get(card.name)
    if speeds:
        told = ", ".join(f"{value:g} at batch {batch}" for batch, value in speeds.items())
        yield "pictures a second", f"{told} (one thread of a CPU, `benchmarks/README.md`)"


def _weights(card: RewardCard) -> Iterator[tuple[str, str]]:
    source = card.hub_id or card.path
    if source is not None:
        at = f" at `{card.revision}`" if card.revision is not None else ""
        yield "weights", f"`{source}`{at}" + (f", file `{card.file}`" if card.file is not None else "")
    if card.sha256 is not None:
        yield "SHA-256", f"`{card.sha256}`"


def _demands(card: RewardCard) -> Iterator[tuple[str, str]]:
    yield "gradient to the pixels", "yes" if card.differentiable else "no"
    if card.groupwise:
        yield "compares", "the pictures of a prompt with one another"
    if card.needs:
        yield "needs beside a prompt", ", ".join(f"`{key}`" for key in card.needs)
    if card.requires:
        yield "needs", f"{', '.join(f'`{name}`' for name in card.requires)} (`pip install 'difalign[rewards]'`)"


def _scale(card: RewardCard) -> Iterator[tuple[str, str]]:
    if card.bounds is not None:
        yield "range", bounds(card)
    found = card.statistics
    if found is not None:
        between = "" if found.low is None or found.high is None else f", from {found.low:g} to {found.high:g}"
        std = "" if found.std is None else f" ± {found.std:g}"
        yield "measured scores", f"{found.mean:g}{std}{between}; {found.source}"
        yield "spread within a prompt", f"**{found.within_prompt_std:g}**"
    for name, scale in card.scales.items():
        yield f"constants of {name}", f"(score − {scale.mean:g}) / {scale.std:g}"


def speeds(file: Path = RESULTS) -> dict[str, dict[str, float]]:
    """Pictures a second of the last measurement: card -> batch -> speed."""
    if not file.is_file():
        return {}
    lines = [json.loads(line)["results"] for line in file.read_text(encoding="utf-8").splitlines()]
    found: dict[str, dict[str, float]] = {}
    for results in lines:
        for name, figures in results["scorers"].items():
            if not figures.get("random_weights", False):
                found[name] = figures["images_per_second"]
    return found


class RewardCardDirective(SphinxDirective):
    """``{reward-card} NAME``."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The table."""
        card = load_reward_card(self.arguments[0]).card
        self.env.note_dependency(str(RESULTS))
        cells = [[key.replace("|", "\\|"), value.replace("|", "\\|")] for key, value in rows(card, speeds())]
        lines = [f"| {key} | {value} |" for key, value in cells]
        return self.parse_text_to_nodes("\n".join(["| | |", "|---|---|", *lines]))


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("reward-card", RewardCardDirective)
    return {"parallel_read_safe": True}
