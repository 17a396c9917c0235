"""What a search is asked for in words, read into values; nothing heavy is imported."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from difalign.build.definitions import find_definition, is_path, known_names
from difalign.core.config_errors import checked
from difalign.core.config_fields import Count, Section
from difalign.core.config_rewards import RewardConfig
from difalign.core.config_yaml import read_yaml
from difalign.core.errors import ConfigError

DEFAULTS = "configs/search"
Branch = Literal["guided", "conditional"]
BRANCHES: tuple[Branch, ...] = ("guided", "conditional")


class SearchDefaults(Section):
    """What a pipeline is searched with unless told otherwise; ``configs/search/PIPELINE.yaml``."""

    reward: str | None = None  # NAME[:WEIGHT],...
    method: str = "best-of-n"
    stages: str | None = None  # of a method that takes them
    candidates: Count = 8  # own: small enough to see something soon
    previews: dict[str, str] = Field(default_factory=dict)  # reward -> the judge of its estimates


@dataclass(frozen=True, slots=True)
class SearchSettings:
    """A search as it is asked for; None leaves it to the defaults of the pipeline."""

    out: str | None = None
    pipeline: str = "tiny-sd3"
    lora: str | None = None
    prompts: str | None = None  # a file
    prompt: tuple[str, ...] = ()  # texts
    method: str | None = None
    reward: str | None = None
    aggregate: str = "weighted"
    preview: str | None = None
    n: int | None = None
    budget_nfe: float | None = None
    budget_tflops: float | None = None
    budget_seconds: float | None = None
    accounting: str = "exact"
    stages: str | None = None
    steps: int | None = None
    size: str | None = None
    guidance: float | None = None
    seed: int = 0
    rule: str | None = None
    noise_level: float | None = None
    dtype: str | None = None
    device: str | None = None
    micro_batch: int = 16
    prompts_in_flight: int = 4
    save: str = "winner"
    shard: str | None = None
    resume: bool = False
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class StageWords:
    """A stage as it is written: where, how many go on, and whose estimate is looked at."""

    sigma: float
    keep: float | int  # a share, or a count
    branch: Branch | None = None


def find_defaults(pipeline: str) -> SearchDefaults:
    """The defaults of a pipeline by its card's name; those of every other pipeline where it has none."""
    if pipeline.replace("_", "-") not in known_names(DEFAULTS):
        return SearchDefaults()
    file = find_definition(DEFAULTS, pipeline)
    content = read_yaml(file)
    if not isinstance(content, Mapping):
        raise ConfigError(f"{file}: must hold `key: value` lines, such as candidates: 8")
    return checked(SearchDefaults, {str(key): value for key, value in content.items()}, source=str(file))


def read_stages(text: str) -> tuple[StageWords, ...]:
    """``SIGMA:KEEP[:BRANCH],...``, falling in sigma.

    Raises:
        ConfigError: with the part that is wrong.
    """
    stages = tuple(_stage(part.strip(), text) for part in text.split(",") if part.strip())
    if not stages:
        raise ConfigError(f"--stages {text!r}: names no stage; write SIGMA:KEEP,... such as 0.8:0.5,0.6:0.5")
    for before, after in itertools.pairwise(stages):
        if after.sigma >= before.sigma:
            raise ConfigError(
                f"--stages {text!r}: must fall in sigma, and {before.sigma:g} is followed by {after.sigma:g}; "
                "reorder them"
            )
    return stages


def _stage(part: str, text: str) -> StageWords:
    words = [word.strip() for word in part.split(":")]
    if len(words) not in (2, 3):
        raise ConfigError(f"--stages {text!r}: {part!r} is not SIGMA:KEEP or SIGMA:KEEP:BRANCH, such as 0.8:0.5")
    sigma = _number(words[0])
    if sigma is None or sigma <= 0:
        raise ConfigError(
            f"--stages {text!r}: sigma = {words[0]!r}: must be a number above 0; finished samples are scored anyway"
        )
    if len(words) == 3 and words[2] not in BRANCHES:
        raise ConfigError(f"--stages {text!r}: branch = {words[2]!r}: must be one of {', '.join(BRANCHES)}")
    branch: Branch | None = next((name for name in BRANCHES if words[2:] == [name]), None)
    return StageWords(sigma, _keep(words[1], text), branch)


def _keep(word: str, text: str) -> float | int:
    if word.isdecimal() and int(word) >= 1:
        return int(word)
    share = _number(word)
    if share is None or not 0.0 < share <= 1.0:
        raise ConfigError(
            f"--stages {text!r}: keep = {word!r}: must be a share in (0, 1], such as 0.5, or a count of at least 1 "
            "written as an integer, such as 4"
        )
    return share


def read_rewards(option: str, text: str) -> dict[str, RewardConfig]:
    """``NAME[:WEIGHT],...`` as a run's ``rewards:``; a name may be the path of a card.

    A candidate that a reward cannot score has no score and is passed over; it does not end the search.

    Raises:
        ConfigError: with the part that is wrong.
    """
    found: dict[str, RewardConfig] = {}
    for part in (part.strip() for part in text.split(",")):
        card, separator, written = part.rpartition(":")
        weight = _number(written) if separator else 1.0
        card = card if separator else part
        if not card or weight is None:
            raise ConfigError(f"{option} {text!r}: {part!r} is not NAME or NAME:WEIGHT, such as verifier or verifier:2")
        if weight <= 0:
            raise ConfigError(f"{option} {text!r}: weight = {weight:g}: must be above 0, or leave {card} out")
        name = card.replace("\\", "/").rsplit("/", 1)[-1].removesuffix(".yaml").removesuffix(".yml").replace("_", "-")
        name = name if is_path(card) else card
        if name in found:
            raise ConfigError(f"{option} {text!r}: names {name} twice; give it once, with the sum of the weights")
        found[name] = RewardConfig(card=card, weight=weight, on_error="drop")
    return found


def read_size(text: str | None) -> tuple[int | None, int | None]:
    """Height and width in pixels of ``SIDE`` or ``WIDTHxHEIGHT``.

    Raises:
        ConfigError: if it is neither.
    """
    if text is None:
        return None, None
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) > 0 for side in sides):
        raise ConfigError(f"--size {text!r}: must be a side in pixels or WIDTHxHEIGHT, such as 512 or 768x512")
    return int(sides[-1]), int(sides[0])


def read_shard(text: str | None) -> tuple[int, int]:
    """``I/N`` as (index from 0, N).

    Raises:
        ConfigError: if it is not one of 1/N to N/N.
    """
    if text is None:
        return 0, 1
    part, separator, whole = text.partition("/")
    if not (separator and part.isdecimal() and whole.isdecimal() and 1 <= int(part) <= int(whole)):
        raise ConfigError(f"--shard {text!r}: must be I/N with I from 1 to N, such as 1/4 to 4/4")
    return int(part) - 1, int(whole)


def read_budget(settings: SearchSettings, defaults: SearchDefaults) -> dict[str, float]:
    """The one budget of a prompt, named as the fields of ``search.budget.Budget``.

    Raises:
        ConfigError: if several are given, or it is not a number above 0.
    """
    options = {
        "candidates": ("--n", settings.n),
        "nfe": ("--budget-nfe", settings.budget_nfe),
        "tflops": ("--budget-tflops", settings.budget_tflops),
        "seconds": ("--budget-seconds", settings.budget_seconds),
    }
    given = {unit: (option, value) for unit, (option, value) in options.items() if value is not None}
    if len(given) > 1:
        named = " and ".join(f"{option} {value:g}" for option, value in given.values())
        raise ConfigError(f"{named}: are {len(given)} budgets; give exactly one")
    for option, value in given.values():
        if not (math.isfinite(value) and value > 0):
            raise ConfigError(f"{option} {value:g}: must be a finite number above 0, for each prompt")
    return {unit: value for unit, (_, value) in given.items()} or {"candidates": defaults.candidates}


def one_of(option: str, word: str, known: Sequence[str]) -> str:
    """A word that must be a known one.

    Raises:
        ConfigError: with the nearest.
    """
    from difalign.core.config_errors import did_you_mean

    if word not in known:
        raise ConfigError(f"{option} {word!r}: is unknown; {did_you_mean(word, list(known))}")
    return word


def _number(word: str) -> float | None:
    try:
        value = float(word)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
