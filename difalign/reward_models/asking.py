"""What becomes of samples that a reward cannot score: asked again, marked, or the end of the run; never a number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from difalign.core.answers import checked
from difalign.core.config_rewards import OnError
from difalign.core.errors import ConfigError
from difalign.core.protocols import RewardModel
from difalign.core.types import Metadata, RewardOutput


@dataclass(frozen=True, slots=True)
class Question:
    """What is to be scored."""

    media: Tensor  # [N, 3, H, W] or [N, F, 3, H, W]
    prompts: Sequence[str]
    metadata: Metadata | None = None
    sigma: float | None = None

    def rows(self, rows: Sequence[int]) -> Question:
        """A part of it."""
        told = None if self.metadata is None else [self.metadata[row] for row in rows]
        return replace(self, media=self.media[list(rows)], prompts=[self.prompts[row] for row in rows], metadata=told)

    def put_to(self, reward: RewardModel) -> RewardOutput:
        """The answer of a reward, as it gives it."""
        return reward.score(self.media, self.prompts, metadata=self.metadata, sigma=self.sigma)


def ask(reward: RewardModel, question: Question, *, on_error: OnError, retries: int = 0) -> RewardOutput:
    """The answer of a reward; rows that it could not score are asked again, by themselves, ``retries`` times.

    With ``on_error="drop"`` an exception of the reward (``OSError``, ``RuntimeError``, ``ValueError``) counts as a
    failure of every row that it was asked for.

    Raises:
        ValueError: if there is not one score a row; with "raise", if a row has none.
    """
    attempt = _forgiving if on_error == "drop" else _strict
    answer = checked(reward.name, attempt(reward, question), question.prompts)
    for _ in range(retries):
        if not answer.errors:
            break
        failed = sorted(answer.errors)
        again = question.rows(failed)
        answer = _with_rows(answer, failed, checked(reward.name, attempt(reward, again), again.prompts))
    return accepted(reward.name, answer, question.prompts, on_error=on_error)


def accepted(name: str, answer: RewardOutput, prompts: Sequence[str], *, on_error: OnError) -> RewardOutput:
    """The answer, unless it lacks a score and ``on_error`` is "raise".

    Raises:
        ValueError: naming the reward, the first prompt without a score, and why it has none.
    """
    if answer.errors and on_error == "raise":
        row = min(answer.errors)
        raise ValueError(
            f"reward {name} has no score for {len(answer.errors)} of {len(prompts)} samples, the first of "
            f"{prompts[row]!r}: {answer.errors[row]}; correct it, or leave such samples out with "
            f"rewards.{name}.on_error=drop"
        )
    return answer


def _strict(reward: RewardModel, question: Question) -> RewardOutput:
    return question.put_to(reward)


def _forgiving(reward: RewardModel, question: Question) -> RewardOutput:
    try:
        return question.put_to(reward)
    except ConfigError:
        raise
    except (OSError, RuntimeError, ValueError) as error:
        return failure(question, f"{type(error).__name__}: {error}")


def failure(question: Question, reason: str) -> RewardOutput:
    """No score for any row."""
    count = len(question.prompts)
    device = question.media.device
    return RewardOutput(
        torch.full((count,), torch.nan, device=device),
        valid=torch.zeros(count, dtype=torch.bool, device=device),
        errors=dict.fromkeys(range(count), reason),
    )


def _with_rows(answer: RewardOutput, rows: Sequence[int], part: RewardOutput) -> RewardOutput:
    """``answer`` with some of its rows replaced; a component that a part lacks is not a number there."""
    index = torch.tensor(rows, device=answer.scores.device)
    names = dict.fromkeys((*answer.components, *part.components))
    nothing, no_part = torch.full_like(answer.scores, torch.nan), torch.full_like(part.scores, torch.nan)
    components = {
        name: answer.components.get(name, nothing).index_copy(0, index, part.components.get(name, no_part))
        for name in names
    }
    assert answer.valid is not None
    assert part.valid is not None
    kept = {row: reason for row, reason in answer.errors.items() if row not in set(rows)}
    return RewardOutput(
        answer.scores.index_copy(0, index, part.scores),
        components,
        answer.valid.index_copy(0, index, part.valid),
        kept | {rows[row]: reason for row, reason in part.errors.items()},
    )
