"""A reward that reads unfinished samples: a student for every level of noise, and its teacher for what is finished.

A reward trained on clean pictures ranks estimates of x0 at high noise hardly better than chance. TTSnap (arXiv
2511.22242) keeps one copy of the network a level, each taught the teacher's score of the finished sample. Scores of
different levels come from different networks: compare them within a level only, and let the teacher decide at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self, final

import torch
from torch import Tensor

from difalign.core.protocols import Movable, ReadsEstimates, RewardModel
from difalign.core.student_bank import read_bank
from difalign.core.types import Metadata, Reading, RewardOutput
from difalign.reward_models.student_loading import check_taught_by, load_students

FINISHED = 0.0  # the level of the teacher
SAME_LEVEL = 1e-4  # grids are computed in float32; two of their levels that are used apart differ by far more

Choice = Callable[[float, Sequence[float]], float | None]  # (sigma, levels with 0) -> a level instead, if any

# What scores at a level that has no student.
FALLBACKS: Mapping[str, Choice] = {
    "error": lambda _, __: None,
    "nearest": lambda sigma, levels: min(levels, key=lambda level: abs(level - sigma)),  # the teacher counts as 0
    "teacher": lambda _, __: FINISHED,
}


@dataclass(frozen=True, slots=True)
class StudentSpan:
    """A student that was taught a range of noise."""

    low: float  # sigma
    high: float
    student: RewardModel


@final
class NoiseAwareReward:
    """One scorer a level of noise, found by sigma and never by a step's index.

    Without a sigma, and at 0, the teacher scores, to the last bit as it does alone. Everything is frozen; a gradient
    reaches the media where the teacher has one.

    Args:
        teacher: scores what is finished.
        students: by the sigma of the estimates that they read, above 0.
        readings: what is read at some of these levels; elsewhere what the student says, or decoded, guided estimates.
        span: a student that answers every sigma of a range, at no level's sigma.
        fallback: what becomes of a level without a student, a key of ``FALLBACKS``.
        name: of the reward.

    Raises:
        ValueError: if there is no such fallback, a level is no noise, or two levels cannot be told apart.
    """

    def __init__(
        self,
        teacher: RewardModel,
        students: Mapping[float, RewardModel],
        *,
        readings: Mapping[float, Reading] | None = None,
        span: StudentSpan | None = None,
        fallback: str = "error",
        name: str = "noise-aware",
    ) -> None:
        if fallback not in FALLBACKS:
            raise ValueError(f"fallback = {fallback!r}: use one of: {', '.join(FALLBACKS)}")
        self.name = name
        self.teacher = teacher
        self._scorers = {FINISHED: teacher, **{_level(sigma): students[sigma] for sigma in sorted(students)}}
        self._readings = {_level(sigma): reading for sigma, reading in (readings or {}).items()}
        self._span = span
        self._instead = FALLBACKS[fallback]
        ordered = [FINISHED, *self.levels]
        for cleaner, noisier in zip(ordered, self.levels, strict=False):
            if noisier - cleaner <= 2 * SAME_LEVEL:
                raise ValueError(
                    f"levels {cleaner:g} and {noisier:g} are closer than {2 * SAME_LEVEL:g} and cannot be told apart; "
                    "leave one out"
                )

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        teacher: RewardModel,
        reader: object | None = None,
        fallback: str = "error",
        name: str = "noise-aware",
    ) -> Self:
        """Load a folder of students over their teacher; tensors that training left alone are shared with it.

        Args:
            source: the folder with ``bank.json``.
            teacher: what the students were taught by, with the same weights in the same precision.
            reader: what made the vectors of prompts for students of latents (``ReadsTexts``); None = the teacher.
            fallback: what becomes of a level without a student, a key of ``FALLBACKS``.
            name: of the reward.

        Raises:
            ValueError: if the bank is of another teacher, a file is missing or damaged, or holds another network.
        """
        folder = Path(source)
        bank = read_bank(folder)
        check_taught_by(bank, teacher, folder)
        students = load_students(bank, folder, teacher=teacher, reader=reader)
        readings = {level.sigma: level.reading for level in bank.levels}
        span = None if bank.span is None or not students else StudentSpan(*bank.span, next(iter(students.values())))
        return cls(teacher, students, readings=readings, span=span, fallback=fallback, name=name)

    @property
    def differentiable(self) -> bool:
        """Whether the teacher is."""
        return self.teacher.differentiable

    @property
    def levels(self) -> tuple[float, ...]:
        """The sigmas that have a student, from clean to noisy."""
        return tuple(sigma for sigma in self._scorers if sigma != FINISHED)

    def to(self, device: str | torch.device) -> None:
        """Move the teacher and all students."""
        for scorer in self._scorers.values():
            if isinstance(scorer, Movable):
                scorer.to(device)

    def level_of(self, sigma: float | None) -> float:
        """The level whose scorer answers for this sigma; 0 is the teacher, and every sigma of a span is its own level.

        Raises:
            ValueError: if there is none, naming those that there are.
        """
        wanted = FINISHED if sigma is None else sigma
        if not (math.isfinite(wanted) and wanted >= 0):
            raise ValueError(f"sigma = {wanted}: the noise of an estimate is a number of at least 0")
        levels = tuple(self._scorers)
        nearest = min(levels, key=lambda level: abs(level - wanted))
        if abs(nearest - wanted) <= SAME_LEVEL:
            return nearest
        if self._span is not None and self._span.low <= wanted <= self._span.high:
            return wanted
        instead = self._instead(wanted, levels)
        if instead is None:
            known = ", ".join(f"{level:.4g}" for level in self.levels) or "none"
            raise ValueError(
                f"sigma = {wanted:.4g}: {self.name!r} has no student for that noise, only for {known}"
                f"{self._between()}; score at one of these, train that level, or ask for fallback = nearest or teacher"
            )
        return instead

    def reading(self, sigma: float) -> Reading:
        """What ``score(..., sigma=sigma)`` is to be handed.

        Raises:
            ValueError: if nobody answers at that noise.
        """
        level = self.level_of(sigma)
        scorer = self._scorer(level)
        if level in self._readings:
            return self._readings[level]
        return scorer.reading(level) if isinstance(scorer, ReadsEstimates) else Reading()

    def score(
        self,
        media: Tensor,
        prompts: Sequence[str],
        *,
        metadata: Metadata | None = None,
        sigma: float | None = None,
    ) -> RewardOutput:
        """Score what ``reading`` says of estimates at noise ``sigma``, or finished samples in [0, 1], a prompt each.

        Raises:
            ValueError: if there is no student for that noise, or what the scorer raises.
        """
        level = self.level_of(sigma)
        told = sigma if level == FINISHED else level  # a student is told what it was taught, whatever the rounding
        return self._scorer(level).score(media, prompts, metadata=metadata, sigma=told)

    def _scorer(self, level: float) -> RewardModel:
        if level in self._scorers:
            return self._scorers[level]
        assert self._span is not None, level
        return self._span.student

    def _between(self) -> str:
        return "" if self._span is None else f", and from {self._span.low:.4g} to {self._span.high:.4g}"


def _level(sigma: float) -> float:
    if not (math.isfinite(sigma) and sigma > 0):
        raise ValueError(f"a student for sigma = {sigma}: must be above 0; at 0 the teacher scores")
    return float(sigma)
