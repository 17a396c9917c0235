"""A reward that reads unfinished samples: a student for every level of noise, and its teacher for what is finished.

A reward trained on clean pictures ranks estimates of x0 at high noise hardly better than chance. TTSnap (arXiv
2511.22242) keeps one copy of the network a level, each taught the teacher's score of the finished sample. Scores of
different levels come from different networks: compare them within a level only, and let the teacher decide at the end.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self, final

import torch
from torch import Tensor, nn

from difalign.core.protocols import Movable, NetworkReward, RewardModel
from difalign.core.student_bank import BankLevel, file_sha256, read_bank, weights_sha256
from difalign.core.types import Metadata, RewardOutput
from difalign.reward_models.checkpoints import read_state_dict

FINISHED = 0.0  # the level of the teacher
SAME_LEVEL = 1e-4  # grids are computed in float32; two of their levels that are used apart differ by far more

Choice = Callable[[float, Sequence[float]], float | None]  # (sigma, levels with 0) -> a level instead, if any

# What scores at a level that has no student.
FALLBACKS: Mapping[str, Choice] = {
    "error": lambda _, __: None,
    "nearest": lambda sigma, levels: min(levels, key=lambda level: abs(level - sigma)),  # the teacher counts as 0
    "teacher": lambda _, __: FINISHED,
}


@final
class NoiseAwareReward:
    """One scorer a level of noise, found by sigma and never by a step's index.

    Without a sigma, and at 0, the teacher scores, to the last bit as it does alone. Everything is frozen; a gradient
    reaches the media where the teacher has one.

    Args:
        teacher: scores what is finished.
        students: by the sigma of the estimates that they read, above 0.
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
        fallback: str = "error",
        name: str = "noise-aware",
    ) -> None:
        if fallback not in FALLBACKS:
            raise ValueError(f"fallback = {fallback!r}: use one of: {', '.join(FALLBACKS)}")
        self.name = name
        self.teacher = teacher
        self._scorers = {FINISHED: teacher, **{_level(sigma): students[sigma] for sigma in sorted(students)}}
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
        fallback: str = "error",
        name: str = "noise-aware",
    ) -> Self:
        """Load a folder of students over their teacher; tensors that training left alone are shared with it.

        Args:
            source: the folder with ``bank.json``.
            teacher: what the students were taught by, with the same weights in the same precision.
            fallback: what becomes of a level without a student, a key of ``FALLBACKS``.
            name: of the reward.

        Raises:
            ValueError: if the bank is of another teacher, a file is missing or damaged, or holds another network.
        """
        folder = Path(source)
        bank = read_bank(folder)
        if not isinstance(teacher, NetworkReward):
            raise ValueError(f"teacher {teacher.name!r} has no `model` and `with_model`, so it has no students")
        if weights_sha256(teacher.model.state_dict()) != bank.teacher_sha256:
            raise ValueError(
                f"{folder}: its students were taught by {bank.teacher!r} with other weights or in another precision "
                f"than {teacher.name!r} has here; load that teacher as it was"
            )
        students = {level.sigma: _student(teacher, folder, level) for level in bank.levels}
        return cls(teacher, students, fallback=fallback, name=name)

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
        """The level whose scorer answers for this sigma; 0 is the teacher.

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
        instead = self._instead(wanted, levels)
        if instead is None:
            known = ", ".join(f"{level:.4g}" for level in self.levels) or "none"
            raise ValueError(
                f"sigma = {wanted:.4g}: {self.name!r} has no student for that noise, only for {known}; score at one of "
                "these, train that level, or ask for fallback = nearest or teacher"
            )
        return instead

    def score(
        self,
        media: Tensor,
        prompts: Sequence[str],
        *,
        metadata: Metadata | None = None,
        sigma: float | None = None,
    ) -> RewardOutput:
        """Score estimates at noise ``sigma``, or finished samples, in [0, 1], against one prompt each.

        Raises:
            ValueError: if there is no student for that noise, or what the scorer raises.
        """
        scorer = self._scorers[self.level_of(sigma)]
        return scorer.score(media, prompts, metadata=metadata, sigma=sigma)


def shared_copy(network: nn.Module) -> nn.Module:
    """A network of its own over the same tensors: giving it other ones leaves the first as it is."""
    tensors = [*network.parameters(), *network.buffers()]
    return copy.deepcopy(network, {id(tensor): tensor for tensor in tensors})


def _student(teacher: NetworkReward, folder: Path, level: BankLevel) -> RewardModel:
    path = folder / level.file
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file, though {folder} lists it; fetch the bank again")
    if file_sha256(path) != level.sha256:
        raise ValueError(f"{path}: its SHA-256 is not the one that the bank lists; it was damaged: fetch it again")
    network = shared_copy(teacher.model)
    own, changed = network.state_dict(), read_state_dict(path)
    wrong = [key for key in sorted(changed) if key not in own or own[key].shape != changed[key].shape]
    if wrong:
        raise ValueError(f"{path}: {', '.join(wrong[:6])}: unknown to {teacher.name!r} or of another shape")
    fitting = {key: tensor.to(own[key]) for key, tensor in changed.items()}
    network.load_state_dict(fitting, strict=False, assign=True)
    return teacher.with_model(network)


def _level(sigma: float) -> float:
    if not (math.isfinite(sigma) and sigma > 0):
        raise ValueError(f"a student for sigma = {sigma}: must be above 0; at 0 the teacher scores")
    return float(sigma)
