"""The stages of a distillation, each of which goes on where it was cut short: generate, label, train, evaluate."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from difalign.build.distill_inputs import SETS, DistillInputs
from difalign.build.distill_students import STUDENT_KINDS, Lesson
from difalign.build.factory import build_pipeline, build_process, build_scorer
from difalign.build.latents import latent_shape
from difalign.core.config_rewards import RewardConfig
from difalign.core.config_yaml import to_yaml
from difalign.core.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from difalign.core.config_distill import StudentConfig
    from difalign.core.protocols import RewardModel, TrainablePipeline
    from difalign.core.types import Source
    from difalign.train.estimate_generation import Walk
    from difalign.train.estimate_store import EstimateStore, ShardLabels, StorePlan
    from difalign.train.estimate_table import ShardedTable
    from difalign.train.progress import ProgressView
    from difalign.train.runtime import Runtime

CONFIG_FILE = "distill.yaml"
_SPARE = 1.1  # what is needed on the disk, times this


def run_distill(inputs: DistillInputs, stages: Sequence[str]) -> None:
    """Run the stages in the order given; what is finished is left as it is.

    Raises:
        ConfigError: if the folder holds something of other settings, a stage before is missing, a file is damaged, the
            disk is full, or a level is not of the pipeline's grid.
    """
    from difalign.report.log import write_text_atomically
    from difalign.train.disk import refused_by_disk
    from difalign.train.estimate_store import sweep
    from difalign.train.progress import progress_view
    from difalign.train.runtime import Runtime

    runtime = Runtime(wait_seconds=inputs.config.wait_seconds)
    failed = True
    try:
        with progress_view(is_main=runtime.is_main, unit="stage", phases=True) as view:
            work = Workbench(inputs, runtime, view)
            if runtime.is_main:
                sweep(work.folder)
                write_text_atomically(work.folder / CONFIG_FILE, to_yaml(inputs.config))
            runtime.barrier()
            for number, stage in enumerate(stages):
                view.run(number, len(stages), stage)
                _STAGES[stage](work)
            view.run(len(stages), len(stages), "done")
        failed = False
    except Exception as error:
        if not refused_by_disk(error):
            raise
        raise ConfigError(
            f"folder = {str(inputs.config.run_folder)!r}: can no longer be written ({error}); what is whole stays: "
            "make room, and run the same command again"
        ) from error
    finally:
        runtime.close(failed=failed)


@dataclass
class Workbench:
    """What the stages share; weights are loaded when they are first needed."""

    inputs: DistillInputs
    runtime: Runtime
    view: ProgressView

    @property
    def folder(self) -> Path:
        """Of everything that is left behind."""
        return self.inputs.config.run_folder

    @cached_property
    def pipeline(self) -> TrainablePipeline:
        """The pipeline, guided as it is to be searched."""
        sampling = self.inputs.config.sampling
        return build_pipeline(
            self.inputs.pipeline,
            process=build_process(self.inputs.run.config.sampling.rule),
            guidance=sampling.guidance,
            device=self.runtime.device,
            height=sampling.height,
            width=sampling.width,
        )

    @cached_property
    def teacher(self) -> RewardModel:
        """The teacher, in float32.

        Raises:
            ConfigError: if it computes in another precision.
        """
        import torch

        from difalign.core.protocols import NetworkReward

        settings = RewardConfig(options=self.inputs.config.teacher.options)
        reward = build_scorer(self.inputs.teacher, settings, self.runtime.device)
        if isinstance(reward, NetworkReward):
            reward.model.eval().requires_grad_(False)
            other = {str(p.dtype) for p in reward.model.parameters() if p.is_floating_point()} - {str(torch.float32)}
            if other:
                raise ConfigError(
                    f"teacher.reward: {reward.name!r} computes in {', '.join(sorted(other))}, which rounds away what "
                    "sets the samples of a prompt apart; use teacher.options.dtype=float32"
                )
        return reward

    @cached_property
    def teacher_mark(self) -> str:
        """Changes with anything that the teacher's scores depend on."""
        from difalign.core.protocols import NetworkReward
        from difalign.core.student_bank import weights_sha256

        reward = self.teacher
        weights = weights_sha256(reward.model.state_dict()) if isinstance(reward, NetworkReward) else ""
        return f"{reward.name}:{_digest(self.inputs.teacher_digest, weights)}"

    def plan(self, which: str) -> StorePlan:
        """What the store of a set is to hold."""
        from difalign.train.estimate_store import StoredPrompt, StorePlan

        config = self.inputs.config
        return StorePlan(
            prompts=tuple(StoredPrompt(prompt.text, prompt.metadata) for prompt in self.inputs.prompts[which]),
            samples=self.inputs.samples(which),
            seed=config.seed,
            shard_rows=config.sampling.shard_rows,
            settings=self.inputs.data_settings(which),
        )

    def store(self, which: str) -> EstimateStore:
        """The store of a set, which must have been begun."""
        from difalign.train.estimate_store import open_store

        return open_store(self.folder / which, self.plan(which))

    def labels(self, store: EstimateStore) -> list[ShardLabels]:
        """The teacher's scores of a whole store."""
        from difalign.train.estimate_store import read_all_labels

        return read_all_labels(store, teacher=self.teacher_mark)

    def table(self, store: EstimateStore, source: Source = "guided", *, cache: bool = False) -> ShardedTable:
        """A store as readers see it, with pictures of one source."""
        from difalign.train.estimate_table import ShardedTable

        return ShardedTable(
            store,
            self.labels(store),
            source=source,
            pixels=self.pixels,
            device=self.runtime.device,
            cache=cache,
        )

    def pixels(self, stored: Tensor) -> Tensor:
        """What is stored of a sample or of a level to pixels in [0, 1]."""
        import torch

        if self.inputs.config.sampling.store == "pixels":
            return stored.to(self.runtime.device).float() / 255
        latents = stored.to(self.runtime.device, torch.float32)
        with torch.no_grad():
            parts = latents.split(self.inputs.config.sampling.micro_batch)
            return torch.cat([self.pipeline.decode(part).float() for part in parts])

    def reader(self, student: StudentConfig) -> RewardModel:
        """What makes vectors of prompts for a student."""
        card = self.inputs.reader(student)
        return self.teacher if card is None else build_scorer(card, RewardConfig(), self.runtime.device)


def _generate(work: Workbench) -> None:
    from difalign.train.estimate_generation import generate
    from difalign.train.estimate_store import open_store, store_exists

    for which in SETS:
        folder, plan = work.folder / which, work.plan(which)
        begun = work.runtime.agree(store_exists(folder))
        if begun and not work.runtime.agree(open_store(folder, plan).missing()):
            work.view.note(f"generate {which}: all {plan.rows} walks are there")
            continue
        levels = _levels(work)
        if work.runtime.is_main:
            store = open_store(folder, plan, levels=levels)
            _check_space(work, store)
        work.runtime.barrier()
        tell = partial(work.view.phase, f"generate {which}: rows evaluated")
        generate(work.pipeline, work.store(which), _walk(work, levels), team=work.runtime, progress=tell)
        work.view.note(f"generate {which}: {plan.rows} walks in {plan.shards} files")


def _levels(work: Workbench) -> dict[float, float]:
    """Each sigma as it was asked for -> as the grid has it."""
    from difalign.rollout.estimates import find_steps

    sampling = work.inputs.config.sampling
    grid = work.pipeline.grid(sampling.steps)
    try:
        find_steps(grid, sampling.sigmas)
        return {sigma: float(grid.sigma[find_steps(grid, [sigma])[0]]) for sigma in sampling.sigmas}
    except ValueError as error:
        raise ConfigError(f"sampling.sigmas: {error}") from None


def _walk(work: Workbench, levels: dict[float, float]) -> Walk:
    import torch

    from difalign.reward_models.preprocessing import shorter_side
    from difalign.train.estimate_generation import Walk, half_precision, single_precision

    sampling = work.inputs.config.sampling

    def picture(latents: Tensor) -> Tensor:
        return shorter_side(work.pipeline.decode(latents.to(work.runtime.device, torch.float32)), sampling.pixels)

    stored = {"latents": (half_precision, single_precision), "pixels": (picture, picture)}
    keep, keep_final = stored[sampling.store]
    sigmas = tuple(sorted(levels.values(), reverse=True))
    return Walk(sampling.steps, sigmas, sampling.sources, sampling.micro_batch, keep, keep_final)


def _check_space(work: Workbench, store: EstimateStore) -> None:
    sampling = work.inputs.config.sampling
    latent = latent_shape(work.inputs.pipeline, height=sampling.height, width=sampling.width)
    if latent is None or sampling.store == "pixels":
        return  # what a picture weighs is known when it is decoded
    numbers = latent[0] * latent[1] * latent[2]
    row = numbers * (2 * len(sampling.sigmas) * len(sampling.sources) + 4)
    needed = _SPARE * row * sum(len(store.plan.rows_of(shard)) for shard in store.missing())
    free = shutil.disk_usage(store.folder).free
    if free < needed:
        raise ConfigError(
            f"folder = {str(work.folder)!r}: has {free / 1e6:,.1f} MB free, and the walks that are missing take about "
            f"{needed / 1e6:,.1f} MB; make room, use a folder on another disk, or fewer sigmas, sources or prompts"
        )


def _label(work: Workbench) -> None:
    from difalign.train.estimate_generation import label

    for which in SETS:
        store = work.store(which)
        failed = label(
            work.teacher,
            store,
            teacher=work.teacher_mark,
            pixels=work.pixels,
            micro_batch=work.inputs.config.evaluation.micro_batch,
            team=work.runtime,
            progress=partial(work.view.phase, f"label {which}"),
        )
        note = f"; {failed} could not be scored and are left out, see {store.folder}/*.labels.json" if failed else ""
        work.view.note(
            f"label {which}: {store.plan.rows} finished samples scored by {work.inputs.teacher.card.name}{note}"
        )


def _train(work: Workbench) -> None:
    store = work.store("train")
    for name, student in work.inputs.config.students.items():
        kind = STUDENT_KINDS[student.kind]
        table = work.table(store, student.sources[0], cache=kind.decoded and getattr(student, "cache", False))
        if not table.prompts:
            raise ConfigError(f"{store.folder}: the teacher could score none of the walks; see its *.labels.json")
        lesson = Lesson(
            teacher=work.teacher,
            reader=work.reader(student),
            reader_name=(work.inputs.reader(student) or work.inputs.teacher).card.name,
            table=table,
            curriculum=tuple(sorted(store.level(sigma) for sigma in student.sigmas or store.sigmas)),
            config=student,
            folder=work.folder / "students" / name,
            team=work.runtime,
            device=work.runtime.device,
            show=lambda text, done, total, name=name: work.view.phase(f"{name} {text}", done, total),
        )
        bank = kind.teach(lesson)
        work.view.note(f"train {name}: {len(bank.levels)} levels in {lesson.folder}")


def _evaluate(work: Workbench) -> None:
    from difalign.build.distill_report import evaluate_and_report

    evaluate_and_report(work)


_STAGES: dict[str, Callable[[Workbench], None]] = {
    "generate": _generate,
    "label": _label,
    "train": _train,
    "evaluate": _evaluate,
}


def _digest(*parts: str) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
