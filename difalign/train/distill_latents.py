"""A student of latents is taught all levels of noise at once, by the scores of any reward.

TTSnap (arXiv 2511.22242) keeps a copy of the reward a level and decodes every estimate to ask it. Here one small
network reads the latents, is told the noise, and sees all levels in every batch; it needs of its teacher nothing but
scores of the finished samples, so that a rule or a service can teach as well as a network.

One process trains. A step depends on the weights, on the data and on (seed, epoch, batch) only; what was cut short goes
on at the last point that was stored and ends bit for bit as it would have.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, Self, final

import torch
from torch import Tensor, nn

from difalign.core.protocols import ReadsTexts, RewardModel
from difalign.core.rng import generator
from difalign.core.student_bank import (
    BankLevel,
    StudentBank,
    TextReader,
    file_sha256,
    reward_sha256,
    weights_sha256,
    write_bank,
)
from difalign.core.types import Reading, Source
from difalign.objective.distillation import RATES, DistillationLoss, check_curriculum
from difalign.train.bank_folder import open_bank
from difalign.train.distill_reward import batches, prompt_numbers
from difalign.train.ema import MovingAverage
from difalign.train.latent_table import LatentTable, channel_statistics, check_table, lessons_sha256
from difalign.train.student_state import StudentState, forget, store, stored

STUDENT_FILE = "latent_student.safetensors"


class LatentScorer(Protocol):
    """The network that is taught; see ``difalign.reward_models.latent_network``."""

    @property
    def config(self) -> LatentScorerConfig:
        """Its make."""
        ...

    def standardise(self, *, latents: tuple[Tensor, Tensor], texts: tuple[Tensor, Tensor], target: Tensor) -> None:
        """Take the constants of the training data: per channel, per element of a prompt's vector, and the scores."""
        ...


class LatentScorerConfig(Protocol):
    """What of its make the trainer reads."""

    @property
    def sources(self) -> tuple[Source, ...]:
        """What is read of a sample, stacked along the channels."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        ...


@dataclass(frozen=True, slots=True)
class LatentDistillationSettings:
    """What a latent student is trained with. A loss is in units of the spread of the scores."""

    levels: tuple[float, ...]  # sigmas, from clean to noisy
    learning_rate: float = 1e-3
    rate: str = "cosine"  # a key of RATES
    last_rate_share: float = 0.0
    warmup: int = 100  # steps in which the rate rises
    epochs: int = 20  # in each of which every trajectory is seen once, at one level
    batch_size: int = 256
    max_grad_norm: float = 1.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.05
    average: float = 0.0  # the most that a moving average of the weights keeps a step; 0 = none
    half: bool = False  # forward and backward under bfloat16 autocast
    seed: int = 0
    whole_range: bool = False  # the bank answers every noise between the first and the last level
    checkpoint_every: int = 200  # steps
    loss: DistillationLoss = field(default_factory=DistillationLoss)

    def __post_init__(self) -> None:
        check_curriculum(self.levels)
        for name in ("learning_rate", "max_grad_norm", "eps"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} = {value}: must be a number above 0")
        for name in ("epochs", "batch_size", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: must be at least 1")
        for name in ("last_rate_share", "average"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} = {getattr(self, name)}: must be in [0, 1]")
        if self.rate not in RATES:
            raise ValueError(f"rate = {self.rate!r}: use one of: {', '.join(RATES)}")

    def recipe(self) -> dict[str, str | int | float | None]:
        """What decides the weights, flat, as it stands in the bank."""
        apart = ("levels", "loss", "betas", "whole_range", "checkpoint_every")
        flat = {name: value for name, value in asdict(self).items() if name not in apart}
        flat |= {f"loss.{name}": value for name, value in asdict(self.loss).items()}
        return flat | {"beta1": self.betas[0], "beta2": self.betas[1]}


@dataclass(frozen=True, slots=True)
class LatentProgress:
    """Where training stands after a step."""

    epoch: int  # from 0
    step: int  # from 1
    steps: int
    loss: float  # in units of the spread of the scores
    learning_rate: float  # of this step


def distill_latents(
    network: nn.Module,
    table: LatentTable,
    *,
    teacher: RewardModel,
    reader: ReadsTexts,
    reader_name: str,
    settings: LatentDistillationSettings,
    folder: Path,
    resume: bool = False,
    progress: Callable[[LatentProgress], None] | None = None,
) -> StudentBank:
    """Teach a network to score latents and write it into a bank; it is left with the weights that were written.

    Args:
        network: a ``LatentScorer``, with the weights that training begins with, on the device that trains.
        table: the training data.
        teacher: whose scores the table holds; never called.
        reader: makes the vectors of prompts; called once a distinct prompt.
        reader_name: of its card.
        settings: what to train with.
        folder: becomes a bank; until it is one, the state of training is kept there.
        resume: go on where the last state was stored; a bank that is done is left as it is.
        progress: called after every step.

    Raises:
        ConfigError: if the folder holds a bank and ``resume`` is not asked for, or was begun with other settings.
        ValueError: if a target or a latent is not finite, or the table lacks a level.
        FloatingPointError: if a loss is not finite; the last stored state stays.
    """
    check_table(table.prompts, table.target)
    lessons = _Lessons.of(network, table, reader, settings)
    data = {"trajectories": len(table.prompts), "lessons_sha256": lessons_sha256(table.prompts, table.target)}
    begin = {"initial_sha256": weights_sha256(network.state_dict())}
    wanted = StudentBank(
        teacher=teacher.name,
        teacher_sha256=reward_sha256(teacher),
        curriculum=settings.levels,
        recipe={**settings.recipe(), **data, **begin},
        kind="latent",
        span=(settings.levels[0], settings.levels[-1]) if settings.whole_range else None,
        reader=TextReader(reader_name, lessons.texts.shape[1], reward_sha256(reader)),
        network=lessons.scorer.config.to_json(),
    )
    bank = open_bank(folder, wanted, resume=resume)
    if bank.complete:
        return bank
    run = _Run(network, settings, identity=repr(wanted))
    run.begin(folder, lessons, resume=resume)
    _train(run, lessons, settings, folder, progress)
    return _finish(run, wanted, folder)


@dataclass(frozen=True, slots=True)
class _Lessons:
    """The data as a step reads it."""

    table: LatentTable
    scorer: LatentScorer
    belong: Tensor  # [N] int64, the prompt of each trajectory
    texts: Tensor  # [P, D] float32, vectors of the distinct prompts
    levels: tuple[float, ...]
    device: torch.device

    @classmethod
    def of(
        cls, network: nn.Module, table: LatentTable, reader: ReadsTexts, settings: LatentDistillationSettings
    ) -> Self:
        scorer: Any = network
        device = next(network.parameters()).device
        texts = torch.cat([reader.embed_texts([prompt]).detach().float() for prompt in dict.fromkeys(table.prompts)])
        return cls(table, scorer, prompt_numbers(table.prompts), texts.to(device), settings.levels, device)

    def batch(self, rows: Tensor, level: Tensor) -> _Batch:
        """The rows, each at its level; sorted by level, so that a level is read at once."""
        order = level.argsort(stable=True)
        rows, level = rows[order], level[order]
        found = [
            self.table.latents(self.levels[index], rows[level == index], self.scorer.config.sources).to(self.device)
            for index in level.unique().tolist()
        ]
        belong, sigma = self.belong[rows], torch.tensor(self.levels)[level]
        return _Batch(
            latents=torch.cat(found),
            sigma=sigma.to(self.device),
            texts=self.texts[belong.to(self.device)],
            target=self.table.target[rows.to(self.table.target.device)].float().to(self.device),
            # Scores of different levels are not compared, so the samples of a prompt at two levels are two groups.
            group=(belong * len(self.levels) + level).to(self.device),
            level=level,
        )


@dataclass(frozen=True, slots=True)
class _Batch:
    latents: Tensor  # [B, k C, h, w]
    sigma: Tensor  # [B]
    texts: Tensor  # [B, D]
    target: Tensor  # [B]
    group: Tensor  # [B] int64
    level: Tensor  # [B] int64, on the CPU


@final
class _Run:
    """The network, its optimiser and average, and how the levels have done."""

    def __init__(self, network: nn.Module, settings: LatentDistillationSettings, *, identity: str) -> None:
        self.network = network
        self.identity = identity
        self.parameters = list(network.requires_grad_(True).parameters())
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=settings.learning_rate,
            betas=settings.betas,
            eps=settings.eps,
            weight_decay=settings.weight_decay,
        )
        self.average = MovingAverage(self.parameters, max_decay=settings.average, every=1) if settings.average else None
        levels = len(settings.levels)
        self.errors = torch.zeros(2, 2, levels, dtype=torch.float64)  # first and last epoch; sum and number
        self.step = 0

    def begin(self, folder: Path, lessons: _Lessons, *, resume: bool) -> None:
        """Take up what is stored, or the constants of the data."""
        found = stored(folder, self.identity) if resume else None
        if found is None:
            texts = lessons.texts
            spread = texts.std(dim=0, correction=0)
            table, sources = lessons.table, lessons.scorer.config.sources
            lessons.scorer.standardise(
                latents=channel_statistics(table, lessons.levels, sources),
                texts=(texts.mean(dim=0), spread),
                target=table.target,
            )
            return
        found.restore(self.network, self.optimizer, self.average)
        self.errors, self.step = found.errors, found.step

    def state(self) -> StudentState:
        """Everything that the steps to come depend on."""
        return StudentState.of(self.network, self.optimizer, self.average, errors=self.errors, step=self.step)


def _train(
    run: _Run,
    lessons: _Lessons,
    settings: LatentDistillationSettings,
    folder: Path,
    progress: Callable[[LatentProgress], None] | None,
) -> None:
    """Every step that has not been made."""
    rows = min(settings.batch_size, lessons.belong.numel())
    steps = settings.epochs * (lessons.belong.numel() // rows)
    for step, (epoch, chosen, level) in enumerate(_plan(lessons.belong, settings)):
        if step < run.step:
            continue
        rate = _rate(step, steps, settings)
        ends = (epoch == 0, epoch + 1 == settings.epochs)
        loss = _step(run, lessons.batch(chosen, level), settings, rate, ends)
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss of step {step + 1} is {loss}; lower learning_rate = {rate:g}")
        run.step = step + 1
        if run.step % settings.checkpoint_every == 0 and run.step < steps:
            store(folder, run.identity, run.state())
        if progress is not None:
            progress(LatentProgress(epoch, run.step, steps, loss, rate))


def _step(
    run: _Run, batch: _Batch, settings: LatentDistillationSettings, rate: float, ends: tuple[bool, bool]
) -> float:
    """One step of the optimiser; its loss. ``ends`` says whether it is of the first epoch, and of the last."""
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    scorer: Any = run.network
    with torch.autocast(batch.latents.device.type, torch.bfloat16, enabled=settings.half):
        scores = scorer(batch.latents, batch.sigma, batch.texts)
    mean, std = scorer.target_mean, scorer.target_std
    loss = settings.loss((scores - mean) / std, (batch.target - mean) / std, batch.group)
    value = float(loss.detach())
    if not math.isfinite(value):
        return value
    run.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(run.parameters, settings.max_grad_norm)
    run.optimizer.step()
    if run.average is not None:
        run.average.update()
    if any(ends):
        error = (scores.detach() - batch.target).square().double().cpu()
        for place in [place for place in (0, 1) if ends[place]]:
            run.errors[place, 0].index_add_(0, batch.level, error)
            run.errors[place, 1].index_add_(0, batch.level, torch.ones_like(error))
    return value


def _plan(belong: Tensor, settings: LatentDistillationSettings) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Epoch, rows [B] and level [B] of every step; all levels are dealt out evenly within a batch.

    Where pairs of a prompt are compared, the rows of a prompt in a batch are all of one level.
    """
    together = settings.loss.ranking_weight > 0
    for epoch in range(settings.epochs):
        key = (settings.seed, epoch)
        for number, rows in enumerate(batches(belong, size=settings.batch_size, together=together, key=key)):
            source = generator("distillation levels", *key, number)
            owners, owner = belong[rows].unique(return_inverse=True) if together else (rows, torch.arange(len(rows)))
            dealt = torch.randperm(owners.numel(), generator=source) + int(torch.randint(1 << 20, (), generator=source))
            yield epoch, rows, (dealt % len(settings.levels))[owner]


def _rate(step: int, steps: int, settings: LatentDistillationSettings) -> float:
    rate = RATES[settings.rate](step, steps=steps, first=settings.learning_rate, last_share=settings.last_rate_share)
    return rate * min(1.0, (step + 1) / (settings.warmup + 1))


def _finish(run: _Run, wanted: StudentBank, folder: Path) -> StudentBank:
    """Write the network and the bank; the state of training is no longer needed."""
    from safetensors.torch import save_file

    if run.average is not None:
        with torch.no_grad():
            for parameter, value in zip(run.parameters, run.average.values, strict=True):
                parameter.copy_(value)
    run.network.requires_grad_(False)
    aside = folder / f".{STUDENT_FILE}.writing"
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in run.network.state_dict().items()}, aside)
    aside.replace(folder / STUDENT_FILE)
    sha256 = file_sha256(folder / STUDENT_FILE)
    scorer: Any = run.network
    first, last = ((errors[0] / errors[1]).tolist() for errors in run.errors)
    levels = tuple(
        BankLevel(sigma, STUDENT_FILE, sha256, run.step, begun, ended, Reading(scorer.config.sources, decoded=False))
        for sigma, begun, ended in zip(wanted.curriculum, first, last, strict=True)
    )
    bank = replace(wanted, levels=levels)
    write_bank(folder, bank)
    forget(folder)
    return bank
