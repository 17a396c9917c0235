"""Several rewards as one: a weighted sum with gates that keeps every part in view."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from difalign.core.answers import checked
from difalign.core.config_rewards import OnError
from difalign.core.protocols import Movable, Pending, RewardModel, SubmittedReward
from difalign.core.types import Metadata, RewardOutput
from difalign.reward_models.asking import Question, accepted, ask, failure


@dataclass(frozen=True, slots=True)
class Gate:
    """A sample whose raw score is below ``at_least`` has ``otherwise`` as its whole reward."""

    at_least: float
    otherwise: float = 0.0


@dataclass(frozen=True, slots=True)
class Term:
    """One reward of a sum, counted as ``weight * (score - mean) / std``."""

    reward: RewardModel
    weight: float = 1.0
    mean: float | None = None  # None, like std: the score as it is
    std: float | None = None
    gate: Gate | None = None
    on_error: OnError = "raise"
    retries: int = 0
    home: str | torch.device | None = None  # where its weights are used, if they wait on the CPU in between

    @property
    def counts(self) -> bool:
        """Whether a sample without this score has no reward."""
        return self.weight != 0.0 or self.gate is not None

    def scaled(self, scores: Tensor) -> Tensor:
        """The scores in the unit in which they are weighted."""
        return scores if self.std is None else (scores - (self.mean or 0.0)) / self.std


@dataclass(frozen=True, slots=True)
class CompositeReward:
    """``sum_i weight_i * scaled_i``, or what a gate says.

    Components are logged raw, under ``reward`` and ``reward/component``; a score with constants also as
    ``reward/scaled``. A sample has no reward if a part that counts has none.
    """

    terms: Mapping[str, Term]
    name: str = "total"

    def __post_init__(self) -> None:
        if not self.terms:
            raise ValueError("a run needs at least one reward; name one under 'rewards:', for instance verifier")
        if self.name in self.terms:  # its score would be recorded in the place of the sum
            raise ValueError(
                f"a reward cannot be called {self.name!r}: {self.name!r} is the name of the weighted sum; "
                "give it another name under 'rewards:', with card: NAME"
            )

    @classmethod
    def weighted(cls, rewards: Mapping[str, tuple[RewardModel, float]]) -> Self:
        """The plain sum of ``weight * score``."""
        return cls({name: Term(reward, weight) for name, (reward, weight) in rewards.items()})

    @property
    def differentiable(self) -> bool:
        """Whether every part is."""
        return all(term.reward.differentiable for term in self.terms.values())

    @property
    def groupwise(self) -> bool:
        """Whether a part compares the samples of a prompt, so that it must be handed whole prompts."""
        return any(getattr(term.reward, "groupwise", False) for term in self.terms.values())

    def score(
        self, media: Tensor, prompts: Sequence[str], *, metadata: Metadata | None = None, sigma: float | None = None
    ) -> RewardOutput:
        """The sum, [N].

        Raises:
            ValueError: what the parts raise; or if a sample has no score and its reward's ``on_error`` is "raise".
        """
        return self.submit(media, prompts, metadata=metadata, sigma=sigma).result()

    def submit(
        self, media: Tensor, prompts: Sequence[str], *, metadata: Metadata | None = None, sigma: float | None = None
    ) -> Pending:
        """The sum, later: parts that are computed elsewhere are asked first and awaited last."""
        question = Question(media, prompts, metadata, sigma)
        away = {
            name: term.reward.submit(media, prompts, metadata=metadata, sigma=sigma)
            for name, term in self.terms.items()
            if isinstance(term.reward, SubmittedReward)
        }
        here = {name: _asked_here(term, question) for name, term in self.terms.items() if name not in away}
        return _Sum(self.terms, question, away, here)


def _asked_here(term: Term, question: Question) -> RewardOutput:
    if term.home is None or not isinstance(term.reward, Movable):
        return ask(term.reward, question, on_error=term.on_error, retries=term.retries)
    term.reward.to(term.home)
    try:
        return ask(term.reward, question, on_error=term.on_error, retries=term.retries)
    finally:
        term.reward.to("cpu")


@dataclass(frozen=True, slots=True)
class _Sum:
    """Answers, some of them still on their way."""

    terms: Mapping[str, Term]
    question: Question
    away: Mapping[str, Pending]
    here: Mapping[str, RewardOutput]

    def result(self) -> RewardOutput:
        """The sum of all answers, once the last is there."""
        answers = {name: self.here[name] if name in self.here else self._awaited(name) for name in self.terms}
        components: dict[str, Tensor] = {}
        total: Tensor | None = None
        errors: dict[int, str] = {}
        for name, term in self.terms.items():
            answer, counted = answers[name], term.scaled(answers[name].scores)
            components[name] = answer.scores
            components |= {f"{name}/{part}": value for part, value in answer.components.items()}
            if term.std is not None:
                components[f"{name}/scaled"] = counted
            if term.counts:
                errors |= {row: f"{name}: {why}" for row, why in answer.errors.items() if row not in errors}
            part = term.weight * counted if term.counts else torch.zeros_like(counted)
            total = part if total is None else total + part
        assert total is not None
        for name, term in self.terms.items():
            if term.gate is not None:
                shut = answers[name].scores < term.gate.at_least
                total = torch.where(shut, torch.full_like(total, term.gate.otherwise), total)
        valid = torch.ones_like(total, dtype=torch.bool)
        if errors:
            valid[list(errors)] = False
            total = total.masked_fill(~valid, torch.nan)
        return RewardOutput(total.float(), components, valid, errors)

    def _awaited(self, name: str) -> RewardOutput:
        term, prompts = self.terms[name], self.question.prompts
        try:
            answer = self.away[name].result()
        except (OSError, RuntimeError) as error:
            if term.on_error == "raise":
                raise
            answer = failure(self.question, f"{type(error).__name__}: {error}")
        return accepted(name, checked(name, answer, prompts), prompts, on_error=term.on_error)
