"""How each kind of students is taught, and how its bank is read again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from difalign.core.config_distill import (
    CopyStudentConfig,
    LatentStudentConfig,
    LoraStudentConfig,
    ModulatedStudentConfig,
    StudentConfig,
)
from difalign.core.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from difalign.core.protocols import ReadsTexts, RewardModel
    from difalign.core.student_bank import StudentBank
    from difalign.core.student_form import StudentForm
    from difalign.train.distill_latents import LatentDistillationSettings
    from difalign.train.distill_reward import DistillationSettings
    from difalign.train.estimate_table import ShardedTable
    from difalign.train.team import Team

_FITTED = 4096  # walks that a patch embedding is fitted on


@dataclass(frozen=True, slots=True)
class Lesson:
    """What a bank is taught with."""

    teacher: RewardModel
    reader: object  # what makes vectors of prompts, for students that have no text tower
    reader_name: str
    table: ShardedTable
    curriculum: tuple[float, ...]  # from clean to noisy
    config: StudentConfig
    folder: Path
    team: Team
    device: torch.device
    show: Callable[[str, int, int], None]  # (what and how well, steps done, steps in all)


@dataclass(frozen=True, slots=True)
class StudentKind:
    """What is done with students of a kind."""

    teach: Callable[[Lesson], StudentBank]
    load: Callable[[Path, RewardModel, object], RewardModel]  # (folder, teacher, reader) -> what scores at every level
    decoded: bool  # whether it reads pictures; if not, latents


def _full(_: StudentConfig) -> StudentForm:
    from difalign.core.student_form import FullForm

    return FullForm()


def _lora(config: StudentConfig) -> StudentForm:
    from difalign.reward_models.student_forms import LoraForm

    assert isinstance(config, LoraStudentConfig)
    return LoraForm(config.rank, config.alpha, config.targets, seed=config.seed)


def _modulated(config: StudentConfig) -> StudentForm:
    from difalign.reward_models.student_forms import ModulatedForm

    assert isinstance(config, ModulatedStudentConfig)
    return ModulatedForm(config.frequencies, config.hidden, config.whole, seed=config.seed)


def _teach_copies(form: Callable[[StudentConfig], StudentForm], lesson: Lesson) -> StudentBank:
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
        progress=lambda at: lesson.show(f"sigma {at.sigma:.2f} loss {at.loss:.3g}", at.step, at.steps),
        team=lesson.team,
        source=lesson.config.sources[0],
        form=form(lesson.config),
    )


def _settings(lesson: Lesson) -> DistillationSettings:
    from difalign.objective.distillation import DistillationLoss
    from difalign.train.distill_reward import DistillationSettings

    config = lesson.config
    assert isinstance(config, CopyStudentConfig)
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
        replay=config.replay,
        loss=DistillationLoss(config.error_weight, config.ranking_weight, config.temperature),
    )


def _teach_latent(lesson: Lesson) -> StudentBank:
    """One process teaches: the network is small, and its steps are short."""
    from difalign.core.protocols import ReadsTexts
    from difalign.core.student_bank import read_bank
    from difalign.train.distill_latents import distill_latents
    from difalign.train.latent_table import in_memory

    config = lesson.config
    assert isinstance(config, LatentStudentConfig)
    if not isinstance(lesson.reader, ReadsTexts):
        raise ConfigError(
            f"students: {lesson.reader_name!r} makes no vectors of prompts, which a student of kind latent reads; name "
            "a reward that does as its reader, such as tiny-clip or clipscore"
        )
    if lesson.team.is_main:
        network = STARTS[config.start](lesson, lesson.reader)
        distill_latents(
            network.to(lesson.device),
            in_memory(lesson.table, lesson.curriculum, config.sources) if config.cache else lesson.table,
            teacher=lesson.teacher,
            reader=lesson.reader,
            reader_name=lesson.reader_name,
            settings=_latent_settings(lesson),
            folder=lesson.folder,
            resume=True,
            progress=lambda at: lesson.show(f"loss {at.loss:.3g}", at.step, at.steps),
        )
    lesson.team.barrier()
    return read_bank(lesson.folder)


def _random_network(lesson: Lesson, reader: ReadsTexts) -> nn.Module:
    from difalign.reward_models.latent_network import LatentNetwork, LatentNetworkConfig

    config = lesson.config
    assert isinstance(config, LatentStudentConfig)
    channels, height, width = _latents(lesson, 1).shape[1:]
    make = LatentNetworkConfig(
        channels=channels,
        height=height,
        width=width,
        text_width=reader.embed_texts(lesson.table.prompts[:1]).shape[1],
        sources=config.sources,
        patch=config.patch,
        hidden=config.hidden,
        depth=config.depth,
        heads=config.heads,
    )
    return LatentNetwork(make, seed=config.seed)


def _teachers_tower(lesson: Lesson, reader: ReadsTexts) -> nn.Module:  # noqa: ARG001  # as all starts
    """The teacher's tower, its patch embedding fitted to the cleanest estimates there are."""
    import torch

    from difalign.reward_models.clip import ClipReward
    from difalign.reward_models.latent_tower import LatentTower

    config, teacher = lesson.config, lesson.teacher
    assert isinstance(config, LatentStudentConfig)
    if not isinstance(teacher, ClipReward):
        raise ConfigError(
            f"students: start = 'teacher': {teacher.name!r} has no CLIP picture tower to begin with; use "
            "start=random, or a teacher such as tiny-clip, clipscore or pickscore"
        )
    latents = _latents(lesson, _FITTED)
    _, channels, height, width = latents.shape
    if height != width:
        raise ConfigError(f"students: start = 'teacher': latents are {height} x {width}, not square; use start=random")
    try:
        tower = LatentTower.of_teacher(
            teacher, channels=channels, size=height, sources=config.sources, seed=config.seed
        )
    except ValueError as error:
        raise ConfigError(f"students: {error}") from error
    rows = torch.arange(latents.shape[0])
    with torch.no_grad():
        wanted = [teacher.embed_patches(lesson.table.media(lesson.curriculum[0], part)) for part in rows.split(256)]
    # What of a walk looks most like a picture early on is the conditional branch: the tower begins with it.
    begun = "conditional" if "conditional" in config.sources else config.sources[0]
    tower.fit_patches(latents, torch.cat(wanted).to(latents.device), source=begun)
    return tower


def _latents(lesson: Lesson, rows: int) -> torch.Tensor:
    """The cleanest estimates of the first walks, of the source that the table decodes, [at most rows, C, h, w]."""
    import torch

    config = lesson.config
    assert isinstance(config, LatentStudentConfig)
    first = torch.arange(min(rows, len(lesson.table.prompts)))
    return lesson.table.latents(lesson.curriculum[0], first, [config.sources[0]])


def _latent_settings(lesson: Lesson) -> LatentDistillationSettings:
    from difalign.objective.distillation import DistillationLoss
    from difalign.train.distill_latents import LatentDistillationSettings

    config = lesson.config
    assert isinstance(config, LatentStudentConfig)
    return LatentDistillationSettings(
        levels=lesson.curriculum,
        learning_rate=config.learning_rate,
        rate=config.rate,
        last_rate_share=config.last_rate_share,
        warmup=config.warmup,
        epochs=config.epochs,
        batch_size=config.batch_size,
        max_grad_norm=config.max_grad_norm,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        average=config.average,
        half=config.half,
        seed=config.seed,
        whole_range=config.whole_range,
        checkpoint_every=config.checkpoint_every,
        loss=DistillationLoss(config.error_weight, config.ranking_weight, config.temperature),
    )


def _load_bank(folder: Path, teacher: RewardModel, reader: object) -> RewardModel:
    from difalign.reward_models.noise_aware import NoiseAwareReward

    return NoiseAwareReward.from_pretrained(folder, teacher=teacher, reader=reader)


STARTS: dict[str, Callable[[Lesson, ReadsTexts], nn.Module]] = {"random": _random_network, "teacher": _teachers_tower}

STUDENT_KINDS: dict[str, StudentKind] = {
    "full": StudentKind(partial(_teach_copies, _full), _load_bank, decoded=True),
    "lora": StudentKind(partial(_teach_copies, _lora), _load_bank, decoded=True),
    "modulated": StudentKind(partial(_teach_copies, _modulated), _load_bank, decoded=True),
    "latent": StudentKind(_teach_latent, _load_bank, decoded=False),
}
