"""The reward of a card, ready to be served."""

from __future__ import annotations

from collections.abc import Sequence

from difalign.build.cards import Found, RewardCard, reward_options
from difalign.build.factory import build_reward
from difalign.core.config import RewardConfig
from difalign.core.config_errors import checked
from difalign.core.overrides import parse_overrides
from difalign.server.app import ServedReward
from difalign.server.identity import card_hash


def load_served(found: Found[RewardCard], settings: Sequence[str], *, device: str, version: str) -> ServedReward:
    """Load a reward by its card, with the options ``NAME=VALUE`` laid over the card's.

    Raises:
        ConfigError: if an option is unknown or the reward cannot be made.
    """
    card = found.card
    config = checked(RewardConfig, {"options": parse_overrides(settings)}, source="--option")
    model = build_reward({card.name: found}, {card.name: config}, device=device).terms[card.name].reward
    return ServedReward(
        model,
        card_hash=card_hash(found, reward_options(card, config)),
        modality=str(getattr(model, "modality", "image")),
        needs=card.needs,
        version=version,
    )
