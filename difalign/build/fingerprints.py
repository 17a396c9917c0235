"""What a configuration only names, as digests: two runs of one configuration may still differ in their files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from difalign.build.cards import Card, Found, PipelineCard, RewardCard
from difalign.core.prompts import Prompt


def fingerprints(
    pipeline: Found[PipelineCard],
    rewards: Mapping[str, Found[RewardCard]],
    train: Sequence[Prompt],
    heldout: Sequence[Prompt],
) -> dict[str, str]:
    """Configuration key -> digest of the prompts or of the card that it names.

    Weights are not among them: reading gigabytes at every start would cost more than it tells.
    """
    marks = {"pipeline": _of_card(pipeline.card)}
    marks |= {f"rewards.{name}": _of_card(found.card) for name, found in rewards.items()}
    marks |= {"prompts.train": _of_prompts(train), "prompts.heldout": _of_prompts(heldout)}
    return marks


def _of_card(card: Card) -> str:
    return _digest(card.model_dump_json(exclude={"name", "summary", "licence"}))


def _of_prompts(prompts: Sequence[Prompt]) -> str:
    return _digest(repr([(prompt.text, prompt.kind, sorted(prompt.metadata.items())) for prompt in prompts]))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
