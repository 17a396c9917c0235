"""How each kind of students is taught, and how its bank is read again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from difalign.core.config_distill import StudentConfig
from difalign.core.errors import ConfigError

if TYPE_CHECKING:
    from difalign.core.protocols import RewardModel
    from difalign.core.student_bank import StudentBank
    from difalign.train.distill_reward import DistillationSettings, Progress
    from difalign.train.estimate_table import ShardedTable
    from difalign.train.team import Team


@dataclass(frozen=True, slots=True)
class Lesson:
    """What a bank is taught with."""

    teacher: RewardModel
    table: ShardedTable
    curriculum: tuple[float, ...]  # from clean to noisy
    config: StudentConfig
    folder: Path
    team: Team
    progress: Progress


@dataclass(frozen=True, slots=True)
class StudentKind:
    """What is done with students of a kind."""

    teach: Callable[[Lesson], StudentBank]
    load: Callable[[Path, RewardModel], RewardModel]  # (folder, teacher) -> what scores at every level
    decoded: bool  # whether it reads pictures; if not, latents


def _teach_full(lesson: Lesson) -> StudentBank:
    from difalign.core.protocols import NetworkReward
    from difalign.train.distill_reward import distill

    if not isinstance(lesson.teacher, NetworkReward):
        raise ConfigError(
            f"teacher.reward: {lesson.teacher.name!r} is not one network whose weights a student could begin with; use "
            "another teacher, such as tiny-clip, clipscore, pickscore, hpsv2 or imagereward"
        )
    return distill(
        lesson.teacher,
        lesson.table,
        settings=_settings(lesson),
        folder=lesson.folder,
        resume=True,
        progress=lesson.progress,
        team=lesson.team,
        source=lesson.config.sources[0],
    )


def _settings(lesson: Lesson) -> DistillationSettings:
    from difalign.objective.distillation import DistillationLoss
    from difalign.train.distill_reward import DistillationSettings

    config = lesson.config
    return DistillationSettings(
        curriculum=lesson.curriculum,
        learning_rate=config.learning_rate,
        last_rate_share=config.last_rate_share,
        epochs=config.epochs,
        batch_size=config.batch_size,
        max_grad_norm=config.max_grad_norm,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        seed=config.seed,
        loss=DistillationLoss(config.error_weight, config.ranking_weight, config.temperature),
    )


def _load_bank(folder: Path, teacher: RewardModel) -> RewardModel:
    from difalign.reward_models.noise_aware import NoiseAwareReward

    return NoiseAwareReward.from_pretrained(folder, teacher=teacher)


STUDENT_KINDS: dict[str, StudentKind] = {"full": StudentKind(_teach_full, _load_bank, decoded=True)}
