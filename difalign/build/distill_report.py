"""What the evaluation of a distillation leaves: figures, a table, a chart and a sheet of estimates."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from difalign.build.distill_students import STUDENT_KINDS
from difalign.core.errors import ConfigError

if TYPE_CHECKING:
    from PIL.Image import Image
    from rich.table import Table

    from difalign.build.distill import Workbench
    from difalign.core.config_distill import StudentConfig
    from difalign.core.protocols import RewardModel
    from difalign.report.agreement_page import AgreementRow
    from difalign.train.distill_evaluation import Judge
    from difalign.train.estimate_store import EstimateStore


def evaluate_and_report(work: Workbench) -> None:
    """Ask teacher and students about held-out walks, and write what is found.

    Raises:
        ConfigError: if a stage before has not come to its end.
    """
    from difalign.report.agreement_page import agreement_table, save_agreement_chart
    from difalign.report.log import write_text_atomically
    from difalign.train.distill_evaluation import MEASURES, as_json, compare, score_levels

    config, store = work.inputs.config, work.store("heldout")
    judges = [*_teachers(work, store), *_students(work, store)]
    scores = work.folder / "scores"
    settings = config.evaluation
    table = work.table(store)
    score_levels(
        judges,
        scores,
        prompts=table.prompts,
        micro_batch=settings.micro_batch,
        team=work.runtime,
        progress=work.view.phase,
    )
    if not work.runtime.is_main:
        return
    rows = compare(judges, scores, prompts=table.prompts, target=table.target, keep=settings.keep)
    facts = _facts(work, store)
    write_text_atomically(work.folder / "evaluation.json", as_json(rows, facts))
    write_text_atomically(work.folder / "evaluation.md", _page(facts, agreement_table(rows, MEASURES)))
    panels = [measure for measure in MEASURES if measure.key in ("spearman", "top")]
    title = f"{facts['teacher']} on estimates of {facts['pipeline']}, guidance {config.sampling.guidance:g}"
    save_agreement_chart(work.folder / "evaluation.png", rows, panels, title=title)
    if settings.pictures:
        _save_sheet(work, store)
    work.view.show(_terminal_table(rows))
    work.view.note(f"evaluate: {work.folder / 'evaluation.md'}")


def _teachers(work: Workbench, store: EstimateStore) -> list[Judge]:
    """The teacher as it is, on what each source shows."""
    from difalign.train.distill_evaluation import Judge

    sigmas = tuple(store.level(sigma) for sigma in store.sigmas)
    return [
        Judge(
            name=f"{work.inputs.teacher.card.name} as it is, {source}",
            reward=lambda: work.teacher,
            estimates=work.table(store, source).media,
            sigmas=sigmas,
            identity=f"{work.teacher_mark} {store.mark}",
        )
        for source in work.inputs.config.sampling.sources
    ]


def _students(work: Workbench, store: EstimateStore) -> list[Judge]:
    from difalign.core.student_bank import read_bank
    from difalign.train.distill_evaluation import Judge

    judges = []
    for name, student in work.inputs.config.students.items():
        folder, kind = work.folder / "students" / name, STUDENT_KINDS[student.kind]
        try:
            bank = read_bank(folder)
        except ValueError as error:
            raise ConfigError(f"students.{name}: {error}; run the stage train first") from None
        if not bank.complete:
            raise ConfigError(f"students.{name}: {len(bank.levels)} of {len(bank.curriculum)} levels; run train first")
        table = work.table(store, student.sources[0])
        weights = " ".join(level.sha256 for level in bank.levels)
        judges.append(
            Judge(
                name=f"students {name}, {' + '.join(student.sources)}",
                reward=partial(_load, work, student, folder),
                estimates=table.media if kind.decoded else partial(table.latents, sources=student.sources),
                sigmas=bank.curriculum,
                identity=f"{weights} {work.teacher_mark} {store.mark}",
            )
        )
    return judges


def _load(work: Workbench, student: StudentConfig, folder: Path) -> RewardModel:
    return STUDENT_KINDS[student.kind].load(folder, work.teacher, work.reader(student))


def _facts(work: Workbench, store: EstimateStore) -> dict[str, object]:
    config = work.inputs.config
    left_out = sum(len(labels.scores) - len(labels.valid) for labels in work.labels(store))
    return {
        "pipeline": work.inputs.pipeline.card.name,
        "teacher": work.inputs.teacher.card.name,
        "steps": config.sampling.steps,
        "guidance": config.sampling.guidance,
        "trained_on": {"prompts": len(work.inputs.prompts["train"]), "samples": config.sampling.samples_per_prompt},
        "heldout": {"prompts": len(store.plan.prompts), "samples": store.plan.samples, "left_out": left_out},
        "keep": config.evaluation.keep,
        "seed": config.seed,
    }


def _page(facts: dict[str, object], table: str) -> str:
    trained, heldout = facts["trained_on"], facts["heldout"]
    assert isinstance(trained, dict)
    assert isinstance(heldout, dict)
    return (
        f"# Scores of unfinished samples: {facts['teacher']} on {facts['pipeline']}\n\n"
        f"{facts['steps']} steps, guidance {facts['guidance']:g}. Held-out prompts: {heldout['prompts']} with "
        f"{heldout['samples']} samples each ({heldout['left_out']} walks left out); students were taught on "
        f"{trained['prompts']} others with {trained['samples']} each. Each figure is a mean over prompts with its "
        "standard error, of scores of what stands at σ against the teacher's of the finished samples.\n\n"
        f"{table}\n"
        "Tacc: is the best sample among the kept, averaged over keeping 5 to 95 percent; Tgap: what the best kept one "
        f"lacks, likewise; top-1 kept: the share of prompts whose best sample is among the best {facts['keep']:.0%} at "
        "σ. Scores of different levels come from different networks: compare within a level.\n"
    )


def _terminal_table(rows: Sequence[AgreementRow]) -> Table:
    from rich import box
    from rich.table import Table

    from difalign.report.words import score

    table = Table("sigma", "judge", "Spearman", "top-1 kept", box=box.SIMPLE)
    for row in sorted(rows, key=lambda row: -row.sigma):
        figures = (row.measures[key] for key in ("spearman", "top"))
        cells = [f"{score(value.mean)} ± {score(value.standard_error)}" for value in figures]
        table.add_row(f"{row.sigma:.4f}", row.judge, *cells)
    return table


def _save_sheet(work: Workbench, store: EstimateStore) -> None:
    """The first sample of some prompts as it ended and as each level and source showed it, with the teacher's score."""
    from difalign.report.images import captioned_grid
    from difalign.report.log import write_bytes_atomically

    sources = work.inputs.config.sampling.sources
    sigmas = sorted((store.level(sigma) for sigma in store.sigmas), reverse=True)
    tiles: list[Image] = []
    captions: list[tuple[str, str]] = []
    for number in range(min(work.inputs.config.evaluation.pictures, len(store.plan.prompts))):
        for source in sources:
            found = _look(work, store, number * store.plan.samples, source, sigmas)
            tiles += [picture for picture, _ in found]
            text = store.plan.prompts[number].text
            named = [text, *(f"{source} at {sigma:.2f}" for sigma in sigmas)]
            captions += [(name, f"teacher {score:.3f}") for name, (_, score) in zip(named, found, strict=True)]
    buffer = io.BytesIO()
    captioned_grid(tiles, captions, columns=1 + len(sigmas)).save(buffer, format="PNG")
    write_bytes_atomically(work.folder / "estimates.png", buffer.getvalue())


def _look(
    work: Workbench, store: EstimateStore, row: int, source: str, sigmas: Sequence[float]
) -> list[tuple[Image, float]]:
    """A walk as it ended and at each level, with the teacher's score of each picture."""
    import torch
    from PIL import Image

    from difalign.report.images import to_uint8
    from difalign.train.estimate_store import FINAL, level_key

    shard, place = divmod(row, store.plan.shard_rows)
    keys = [FINAL, *(level_key(source, sigma) for sigma in sigmas)]
    with torch.no_grad():
        pixels = torch.cat([work.pixels(store.tensor(shard, key)[place : place + 1]) for key in keys])
        scores = work.teacher.score(pixels, [store.plan.prompt_of(row).text] * len(keys)).scores.tolist()
    return [(Image.fromarray(picture), score) for picture, score in zip(to_uint8(pixels), scores, strict=True)]
