"""A reward teaches copies of itself to read noisy estimates, one level of noise after the other.

TTSnap (arXiv 2511.22242; the released code's settings are the defaults): the first student starts from the teacher and
the cleanest level, each further one from the student of the level before; the optimiser and its rate begin anew at
every level, and the network after a level is that level's scorer. The target is at all levels the same number: the
teacher's raw score of the trajectory's finished sample.

A level depends on the weights it starts from, on the data and on (seed, level) only, so that training which was cut
short goes on at the last finished level and ends bit for bit as it would have. Several processes split each batch and
take the steps of one, to rounding; the first writes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from difalign.core.errors import ConfigError
from difalign.core.protocols import NetworkReward, ReadsEstimates, RewardModel
from difalign.core.rng import generator
from difalign.core.student_bank import BankLevel, StudentBank, file_sha256, read_bank, weights_sha256, write_bank
from difalign.core.student_form import FullForm, StudentForm
from difalign.core.types import Reading, Source
from difalign.objective.distillation import DistillationLoss, check_curriculum, decayed_rate
from difalign.objective.ranking import Agreement, agreement
from difalign.train.bank_folder import open_bank
from difalign.train.latent_table import LatentTable, check_table
from difalign.train.replay import replayed_levels
from difalign.train.shared_batches import backward_together, score_together
from difalign.train.team import Team


@runtime_checkable
class EstimateTable(Protocol):
    """Estimates of x0 on the way, beside the teacher's scores of what became of them; N trajectories."""

    @property
    def prompts(self) -> Sequence[str]:
        """The prompt of each trajectory, N."""
        ...

    @property
    def target(self) -> Tensor:
        """The teacher's raw score of each finished sample, [N] float32."""
        ...

    def media(self, sigma: float, rows: Tensor) -> Tensor:
        """The estimates at noise ``sigma`` of the trajectories ``rows`` ([B] int64), as the reward reads them."""
        ...


@dataclass(frozen=True, slots=True)
class StoredEstimates:
    """A table in memory."""

    prompts: tuple[str, ...]  # N
    target: Tensor  # [N] float32
    estimates: Mapping[float, Tensor]  # sigma -> [N, C, H, W] in [0, 1]

    def __post_init__(self) -> None:
        sizes = {tuple(self.target.shape), (len(self.prompts),), *((m.shape[0],) for m in self.estimates.values())}
        if len(sizes) != 1:
            raise ValueError(f"prompts, targets and estimates have {sorted(sizes)} rows: give one of each a trajectory")

    def media(self, sigma: float, rows: Tensor) -> Tensor:
        """The estimates of some trajectories.

        Raises:
            ValueError: if the table has none at that noise.
        """
        if sigma not in self.estimates:
            raise ValueError(f"there are no estimates at sigma {sigma:g}, only at {sorted(self.estimates)}")
        return self.estimates[sigma][rows]


@dataclass(frozen=True, slots=True)
class DistillationSettings:
    """What a bank is trained with."""

    curriculum: tuple[float, ...]  # sigmas, from clean to noisy
    learning_rate: float = 3e-6  # ImageReward's; PickScore and HPSv2: 5e-7
    last_rate_share: float = 0.5
    epochs: int = 1
    batch_size: int = 100
    max_grad_norm: float = 5.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.01
    seed: int = 2000
    replay: float = 0.0  # share of each batch that is of earlier levels; 0 in the released code
    loss: DistillationLoss = field(default_factory=DistillationLoss)

    def __post_init__(self) -> None:
        check_curriculum(self.curriculum)
        for name in ("learning_rate", "last_rate_share", "max_grad_norm", "eps"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} = {value}: must be a number above 0")
        if not 0 <= self.replay < 1:
            raise ValueError(f"replay = {self.replay}: must be in [0, 1), or the level itself is not trained")
        if self.epochs < 1 or self.batch_size < 1:
            raise ValueError(f"epochs = {self.epochs}, batch_size = {self.batch_size}: both must be at least 1")

    def recipe(self) -> dict[str, str | int | float | None]:
        """Everything but the curriculum, flat, as it stands in the bank."""
        flat = asdict(self) | {f"loss.{name}": value for name, value in asdict(self.loss).items()}
        flat |= {"beta1": self.betas[0], "beta2": self.betas[1]}
        return {name: value for name, value in flat.items() if name not in ("curriculum", "loss", "betas")}


@dataclass(frozen=True, slots=True)
class DistillationProgress:
    """Where training stands after a step."""

    sigma: float
    level: int  # from 0
    levels: int
    step: int  # of the level, from 1
    steps: int
    loss: float
    learning_rate: float  # of this step


Progress = Callable[[DistillationProgress], None]

_WRAPPED = ".base_layer."  # what adapters put into the names of the layers that they sit on


def distill(
    teacher: NetworkReward,
    table: EstimateTable,
    *,
    settings: DistillationSettings,
    folder: Path,
    resume: bool = False,
    progress: Progress | None = None,
    team: Team | None = None,
    source: Source = "guided",
    form: StudentForm | None = None,
) -> StudentBank:
    """Train a student a level and write each, once it is done, into the bank in ``folder``.

    All weights of the network are trained that a score depends on, without dropout, unless ``form`` says otherwise.

    Args:
        teacher: where the first student starts; stays as it is.
        table: the training data.
        settings: what to train with.
        folder: becomes a bank; a level is in it whole or not at all.
        resume: go on after the levels that are there; a bank with all of them is left as it is.
        progress: called after every step.
        team: the processes that train together; None = this one alone.
        source: whose estimates the table shows; stands in the bank.
        form: what a student is made of and what of it is trained; None = a whole copy of the teacher's network.

    Raises:
        ConfigError: if the folder holds a bank and ``resume`` is not asked for, or one of other settings or teacher.
        ValueError: if a target is not finite, or what scoring raises.
        FloatingPointError: if a loss is not finite; levels that are done stay.
    """
    check_table(table.prompts, table.target)
    base = {name: tensor.clone() for name, tensor in teacher.model.state_dict().items()}
    form = FullForm() if form is None else form
    empty = StudentBank(
        teacher.name,
        weights_sha256(base),
        settings.curriculum,
        recipe=settings.recipe() | {"source": source},
        kind=form.kind,
        network=form.to_json(),
    )
    bank = open_bank(folder, empty, resume=resume)
    network = copy.deepcopy(teacher.model)
    form.adapt(network)
    student = form.reward(teacher, network)
    _carry(student.model, folder, bank)
    for level in range(len(bank.levels), len(settings.curriculum)):
        trained = form.trainable(student.model)
        losses = _train_level(student, trained, table, settings, level=level, progress=progress, team=team)
        student.model.requires_grad_(False)
        if team is not None and not team.is_main:
            team.barrier()
            bank = read_bank(folder)
            continue
        file = _write_changed(student.model, base, folder, settings.curriculum[level])
        done = BankLevel(
            sigma=settings.curriculum[level],
            file=file,
            sha256=file_sha256(folder / file),
            steps=len(losses),
            first_loss=losses[0],
            last_loss=losses[-1],
            reading=Reading((source,)),
        )
        before = bank.levels
        if form.one_for_all:  # the network has gone on learning; what it was is no longer anyone's student
            before = tuple(replace(known, file=done.file, sha256=done.sha256) for known in before)
        superseded = {known.file for known in bank.levels}
        bank = replace(bank, levels=(*before, done))
        write_bank(folder, bank)
        for name in superseded - {known.file for known in bank.levels}:
            (folder / name).unlink(missing_ok=True)
        if team is not None:
            team.barrier()
    return bank


@torch.no_grad()
def evaluate(
    reward: RewardModel,
    table: EstimateTable | LatentTable,
    sigmas: Sequence[float],
    *,
    prompts: Tensor | None = None,
    micro_batch: int = 256,
) -> dict[float, Agreement]:
    """How the scores of estimates agree with the table's targets, by level, prompt by prompt.

    Args:
        reward: scores at each sigma; a bank, or a plain reward that ignores sigma.
        table: data that nothing was trained on; one that holds what the reward reads.
        sigmas: the levels.
        prompts: which trajectories belong together, [N] int64; None = those of equal prompts.
        micro_batch: rows read at a time; memory only.

    Raises:
        ValueError: what scoring raises, or if a score is not finite.
    """
    belong = prompt_numbers(table.prompts) if prompts is None else prompts
    found = {}
    for sigma in sigmas:
        scores = []
        for rows in torch.arange(len(table.prompts)).split(micro_batch):
            asked = [table.prompts[int(row)] for row in rows]
            scores.append(reward.score(_read(table, reward, sigma, rows), asked, sigma=sigma).scores.cpu())
        found[sigma] = agreement(torch.cat(scores), table.target.cpu(), belong)
    return found


def _read(table: EstimateTable | LatentTable, reward: RewardModel, sigma: float, rows: Tensor) -> Tensor:
    reading = reward.reading(sigma) if isinstance(reward, ReadsEstimates) else Reading()
    if isinstance(table, EstimateTable) and reading.decoded:
        return table.media(sigma, rows)
    if isinstance(table, LatentTable) and not reading.decoded:
        return table.latents(sigma, rows, reading.sources)
    wanted = "decoded" if reading.decoded else "undecoded"
    raise ValueError(f"{reward.name!r} reads {wanted} estimates at sigma {sigma:g}: this table holds none; record them")


def prompt_numbers(prompts: Sequence[str]) -> Tensor:
    """A number a distinct prompt, in order of first appearance, [N] int64."""
    known = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
    return torch.tensor([known[prompt] for prompt in prompts], dtype=torch.int64)


def batches(belong: Tensor, *, size: int, together: bool, key: tuple[int, ...]) -> Iterator[Tensor]:
    """All rows in random order, ``size`` at a time; what does not fill a batch is left out, unless it is all there is.

    Args:
        belong: which prompt a row is of, [N] int64.
        size: rows a batch.
        together: whether the rows of a prompt stand one after the other, as a loss of pairs needs them.
        key: what the order is a function of.
    """
    source = generator("distillation", *key)
    order = torch.randperm(belong.numel(), generator=source)
    if together:
        place = torch.randperm(int(belong.max()) + 1, generator=source)
        order = order[place[belong[order]].argsort(stable=True)]
    whole = order.split(min(size, belong.numel()))
    yield from (batch for batch in whole if batch.numel() == whole[0].numel())


def _train_level(
    student: NetworkReward,
    parameters: Sequence[nn.Parameter],
    table: EstimateTable,
    settings: DistillationSettings,
    *,
    level: int,
    progress: Progress | None,
    team: Team | None,
) -> list[float]:
    """Fit the student to one level with an optimiser of its own; the loss of every step."""
    sigma, belong = settings.curriculum[level], prompt_numbers(table.prompts)
    optimizer = torch.optim.AdamW(
        parameters,
        lr=settings.learning_rate,
        betas=settings.betas,
        eps=settings.eps,
        weight_decay=settings.weight_decay,
    )
    together = settings.loss.ranking_weight > 0
    plan = [
        rows
        for epoch in range(settings.epochs)
        for rows in batches(belong, size=settings.batch_size, together=together, key=(settings.seed, level, epoch))
    ]

    losses: list[float] = []
    for step, rows in enumerate(plan):
        rate = decayed_rate(step, steps=len(plan), first=settings.learning_rate, last_share=settings.last_rate_share)
        for group in optimizer.param_groups:
            group["lr"] = rate
        key = (settings.seed, level, step)
        levels = replayed_levels(belong[rows], level, share=settings.replay, together=together, key=key)
        noise = torch.tensor(settings.curriculum, dtype=torch.float64)[levels]
        scores = score_together(partial(_score, student, table, rows, noise), torch.arange(rows.numel()), team)
        # Scores of different levels are not compared: the samples of a prompt at two levels are two groups.
        group = belong[rows] * len(settings.curriculum) + levels
        loss = settings.loss(scores, table.target[rows].to(scores), group.to(scores.device))
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            raise FloatingPointError(
                f"the loss at sigma {sigma:g}, step {step + 1} is {losses[-1]}; lower learning_rate = {rate:g}, or "
                "look for estimates that are not finite"
            )
        optimizer.zero_grad(set_to_none=True)
        backward_together(loss, parameters, team)
        nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
        optimizer.step()
        if progress is not None:
            levels = len(settings.curriculum)
            progress(DistillationProgress(sigma, level, levels, step + 1, len(plan), losses[-1], rate))
    return losses


def _score(student: NetworkReward, table: EstimateTable, rows: Tensor, noise: Tensor, places: Tensor) -> Tensor:
    """The scores of some places of a batch, [b], each row at its sigma; a level is read and scored at once."""
    rows, noise = rows[places], noise[places]
    found, order = [], []
    for sigma in noise.unique().tolist():
        at = (noise == sigma).nonzero().flatten()
        asked = [table.prompts[int(row)] for row in rows[at]]
        found.append(student.score(table.media(sigma, rows[at]), asked, sigma=sigma).scores)
        order.append(at)
    return found[0] if len(found) == 1 else torch.cat(found)[torch.cat(order).argsort().to(found[0].device)]


def _carry(network: nn.Module, folder: Path, bank: StudentBank) -> None:
    """Give the network the weights of the noisiest level that is done."""
    if not bank.levels:
        return
    from safetensors.torch import load_file

    last = bank.levels[-1]
    path = folder / last.file
    if not path.is_file() or file_sha256(path) != last.sha256:
        raise ConfigError(f"{path}: is missing or damaged, and training cannot go on from it; begin anew")
    network.load_state_dict({**network.state_dict(), **load_file(path)})


def _write_changed(network: nn.Module, base: Mapping[str, Tensor], folder: Path, sigma: float) -> str:
    """Write the tensors that are not the teacher's; the name of the file."""
    from safetensors.torch import save_file

    changed = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in network.state_dict().items()
        if (own := name.replace(_WRAPPED, ".")) not in base or not torch.equal(tensor, base[own])
    }
    name = f"sigma_{sigma:.6g}.safetensors"
    aside = folder / f".{name}.writing"
    save_file(changed, aside)
    aside.replace(folder / name)
    return name
