"""Scoring picture files with rewards named by their cards: all checks first, then batches of one size."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from difalign.build.cards import Found, RewardCard, load_reward_card, reward_options
from difalign.build.picture_files import PictureFile, read_pixels
from difalign.build.prompt_readers import meaning_of
from difalign.build.reward_files import is_installed
from difalign.build.targets import check_target
from difalign.core.config_rewards import RewardConfig
from difalign.core.errors import ConfigError, in_one_message
from difalign.core.prompts import Prompt
from difalign.report.score_table import ScoredPicture

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from difalign.core.protocols import RewardModel
    from difalign.core.types import RewardOutput

_SHOWN = 3
Progress = Callable[[str, int, int], None]  # the reward, pictures scored, pictures in all


@dataclass(frozen=True, slots=True)
class Scorer:
    """A reward by its card, under the name that its column has."""

    found: Found[RewardCard]
    config: RewardConfig


def check_device(device: str) -> None:
    """Refuse a device that torch does not know or does not have.

    Raises:
        ConfigError: with the value.
    """
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"--device {device}: cannot be used ({reason}); use cpu or cuda:0") from None


def find_scorers(configs: Mapping[str, RewardConfig]) -> dict[str, Scorer]:
    """The cards of some rewards, with all that can be said without loading them.

    Args:
        configs: column -> card and options, as under ``rewards:`` of a run.

    Raises:
        ConfigError: naming every reward that is unknown or lacks a module or its weights, and every unknown option.
    """
    scorers: dict[str, Scorer] = {}
    problems: list[str] = []
    for name, config in configs.items():
        try:
            found = load_reward_card(config.card or name)
            reward_options(found.card, config)
            check_target(found.card.target)
        except ConfigError as error:
            problems.append(f"reward {name!r}: {error}")
            continue
        missing = [module for module in found.card.requires if not is_installed(module)]
        if missing:
            problems.append(f"reward {name!r}: needs {', '.join(missing)}; pip install 'difalign[rewards]'")
        scorers[name] = Scorer(found, config)
    if problems:
        raise ConfigError(in_one_message(problems))
    return scorers


def check_prompts(scorers: Mapping[str, Scorer], prompts: Sequence[Prompt]) -> None:
    """Refuse prompts that a reward cannot score, or beside which it is not told what it needs.

    Raises:
        ConfigError: with the first few of them.
    """
    distinct = list({(prompt.text, tuple(prompt.metadata)): prompt for prompt in prompts}.values())
    problems = [f"reward {name!r} {said}" for name, scorer in scorers.items() for said in unreadable(scorer, distinct)]
    if problems:
        more = len(problems) - _SHOWN
        raise ConfigError(in_one_message(problems[:_SHOWN] + ([f"... and {more} more"] if more > 0 else [])))


def unreadable(scorer: Scorer, prompts: Sequence[Prompt]) -> Iterator[str]:
    """What is wrong with prompts, by what a card says of them."""
    card = scorer.found.card
    for prompt in prompts:
        for key in card.needs:
            if key not in prompt.metadata:
                yield f"needs {key!r} beside {prompt.text!r}: give prompts as .jsonl, .csv or .parquet with that key"
    if card.prompt_reader is None:
        return
    for prompt in prompts:
        try:
            meaning_of(prompt, card.prompt_reader)
        except ValueError as error:
            yield f"cannot score {prompt.text!r}: {error}"


def score_pictures(
    scorers: Mapping[str, Scorer],
    pictures: Sequence[PictureFile],
    prompts: Sequence[Prompt],
    *,
    device: str | torch.device,
    batch: int,
    progress: Progress,
) -> list[ScoredPicture]:
    """Every score of every picture, in their order; one reward at a time is in memory.

    Pictures of one size are scored together, at most ``batch`` at a time; those of a groupwise reward a prompt at a
    time.

    Raises:
        ConfigError: if a reward cannot be loaded or refuses what it is given.
    """
    scores: list[dict[str, float]] = [{} for _ in pictures]
    errors: list[dict[str, str]] = [{} for _ in pictures]
    for name, scorer in scorers.items():
        reward = load_scorer(name, scorer, device)
        progress(name, 0, len(pictures))
        done = 0
        for rows in _batches(pictures, prompts, batch=batch, groupwise=scorer.found.card.groupwise):
            output = _score(name, reward, [pictures[row] for row in rows], [prompts[row] for row in rows])
            for column, values in {name: output.scores, **_components(name, output)}.items():
                for row, value in zip(rows, values.tolist(), strict=True):
                    scores[row][column] = value
            for position, value in enumerate(output.scores.tolist()):
                if not math.isfinite(value):
                    errors[rows[position]][name] = output.errors.get(position, "the score is not a finite number")
            done += len(rows)
            progress(name, done, len(pictures))
    return [
        ScoredPicture(str(picture.path), prompt.text, score, error)
        for picture, prompt, score, error in zip(pictures, prompts, scores, errors, strict=True)
    ]


def load_scorer(name: str, scorer: Scorer, device: str | torch.device) -> RewardModel:
    """The reward itself, without weight and unit.

    Raises:
        ConfigError: if it cannot be loaded.
    """
    from difalign.build.factory import build_reward

    try:
        return build_reward({name: scorer.found}, {name: scorer.config}, device=device).terms[name].reward
    except ConfigError as error:
        raise ConfigError(f"reward {name!r}: {error}") from None


def _batches(
    pictures: Sequence[PictureFile], prompts: Sequence[Prompt], *, batch: int, groupwise: bool
) -> Iterator[list[int]]:
    """Rows that are scored in one call, in order of their first one."""
    together: dict[object, list[int]] = defaultdict(list)
    for row, (picture, prompt) in enumerate(zip(pictures, prompts, strict=True)):
        together[prompt.text if groupwise else (picture.height, picture.width)].append(row)
    for rows in together.values():
        if not groupwise:
            yield from (rows[start : start + batch] for start in range(0, len(rows), batch))
            continue
        sizes = {(pictures[row].height, pictures[row].width) for row in rows}
        if len(sizes) > 1:
            raise ConfigError(
                f"the pictures of {prompts[rows[0]].text!r} are of {len(sizes)} sizes; a reward that compares the "
                "pictures of a prompt needs them of one size"
            )
        yield rows


def _score(name: str, reward: RewardModel, pictures: Sequence[PictureFile], prompts: Sequence[Prompt]) -> RewardOutput:
    import torch

    with torch.no_grad():
        media = _pixels(pictures)
        try:
            output = reward.score(
                media, [prompt.text for prompt in prompts], metadata=[prompt.metadata for prompt in prompts]
            )
        except ValueError as error:
            raise ConfigError(f"reward {name!r}, from {pictures[0].path} on: {error}") from error
    if output.scores.shape != (len(pictures),):
        raise ConfigError(
            f"reward {name!r} gave scores of shape {tuple(output.scores.shape)} for {len(pictures)} pictures; "
            "it must give one number a picture"
        )
    return output


def _pixels(pictures: Sequence[PictureFile]) -> Tensor:
    """[N, 3, H, W] in [0, 1]."""
    import numpy as np
    import torch

    content = np.stack([read_pixels(picture) for picture in pictures])
    return torch.from_numpy(content).permute(0, 3, 1, 2).float() / 255.0


def _components(name: str, output: RewardOutput) -> dict[str, Tensor]:
    return {f"{name}/{part}": values for part, values in output.components.items()}
