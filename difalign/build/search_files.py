"""What a search leaves in its folder: every prompt's own folder, one line a prompt, and what the whole run was.

Beside them lies ``.unfinished`` while a run goes on: the lines of processes other than a single one, and the states of
prompts between two stages. What is written is whole or absent, so that a run that was killed, or whose disk is full, is
gone on with where it was.
"""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from difalign.report.search_pictures import Pictures, Saved, write_pictures
from difalign.report.search_records import (
    SCORES_FORMAT,
    CostRecord,
    LookRecord,
    PlanRecord,
    PriceRecord,
    ResultLine,
    ScoresRecord,
    StageRecord,
    WinnerRecord,
    append_result,
    read_results,
    write_results,
    write_scores,
)

if TYPE_CHECKING:
    from torch import Tensor

    from difalign.build.search_task import SearchTask
    from difalign.search.budget import Cost, Price
    from difalign.search.results import Found, Look
    from difalign.search.state import State

UNFINISHED = ".unfinished"


def prompt_folder(index: int) -> str:
    """The folder of the prompt at ``index`` of the prompt file, 0 first."""
    return f"p{index:05d}"


def cost_record(task: SearchTask, cost: Cost, *, seconds: float | None) -> CostRecord:
    """A cost as it is recorded; its operations by their price, its seconds by the clock or as foretold."""
    tflops = task.prices.of.get("tflops")
    return CostRecord(
        cost.nfe, cost.decodes, cost.scores, cost.previews, None if tflops is None else tflops.of(cost), seconds
    )


def plan_record(task: SearchTask, *, seconds: float | None) -> PlanRecord:
    """The forecast of a prompt."""
    from difalign.search.schedule import survivors

    alive, walk = task.plan.alive, task.walk
    stages = tuple(
        StageRecord(
            check.step,
            check.sigma,
            alive[check.step],
            survivors(alive[check.step], check.keep, rounding=walk.rounding),
        )
        for check in walk.checks
    )
    cost = cost_record(task, task.plan.cost, seconds=seconds)
    return PlanRecord(task.plan.candidates, task.plan.finished, walk.num_steps, stages, cost)


def price_record(price: Price) -> PriceRecord:
    """A price as it is recorded."""
    return PriceRecord(price.nfe, price.decode, price.score, price.preview)


def write_prompt(
    task: SearchTask, folder: Path, found: Found, *, cost: CostRecord, software: Mapping[str, str], cut_short: bool
) -> ScoresRecord:
    """Write the folder of one prompt: pictures first, then the scores that name them."""
    folder.mkdir(parents=True, exist_ok=True)
    scores = _scores(task, found, cost=cost, software=software, cut_short=cut_short)
    looks = [None if look.pictures is None else _rows(look.pictures) for look in found.looks]
    assert found.finish.pictures is not None
    saved: Saved = task.inputs.settings.save  # type: ignore[assignment]  # checked with the other words
    written = write_pictures(folder, scores, looks, _rows(found.finish.pictures), save=saved)
    write_scores(folder, written)
    return written


def _scores(
    task: SearchTask, found: Found, *, cost: CostRecord, software: Mapping[str, str], cut_short: bool
) -> ScoresRecord:
    readings = {check.step: check.reading for check in task.walk.checks}
    looks = []
    for look in found.looks:
        reading = readings[look.step]
        judge, sources = (task.inputs.previewed_by, reading.sources) if task.walk.scored else (None, ())
        looks.append(_look(look, judge=judge, sources=sources, decoded=reading.decoded))
    finish = _look(found.finish, judge=task.inputs.judged_by, sources=(), decoded=True)
    winner = None
    if found.winner is not None:
        assert found.score is not None
        winner = WinnerRecord(found.winner, found.seeds[found.winner], found.score)
    ranked = task.inputs.settings.aggregate == "rank-sum" and len(task.inputs.rewards) > 1
    return ScoresRecord(
        format=SCORES_FORMAT,
        prompt=found.prompt,
        seeds=found.seeds,
        looks=tuple(looks),
        finish=finish,
        winner=winner,
        cost=cost,
        software=dict(software),
        ranked_by="rank_sum" if ranked else "score",
        cut_short=cut_short,
    )


def _look(look: Look, *, judge: str | None, sources: tuple, decoded: bool) -> LookRecord:
    return LookRecord(
        step=look.step,
        sigma=look.sigma,
        judge=judge,
        sources=sources,
        decoded=decoded,
        index=look.index,
        scores=_finite(look.scores),
        components={name: _finite(values) for name, values in look.components.items()},
        errors=dict(look.errors),
        kept=look.kept,
    )


def _finite(values: Sequence[float]) -> tuple[float | None, ...]:
    return tuple(value if math.isfinite(value) else None for value in values)


def _rows(pictures: Tensor) -> Pictures:
    """[A, C, H, W] uint8 as [A, H, W, 3]."""
    return pictures.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()


@dataclass(frozen=True, slots=True)
class ResultFiles:
    """The lines of a run: one file, or one a process until they are merged."""

    out: Path
    rank: int
    world: int

    @property
    def _own(self) -> Path:
        return self.out if self.world == 1 else self.out / UNFINISHED / f"rank{self.rank}"

    def append(self, line: ResultLine) -> None:
        """One more prompt; safely on the disk on return."""
        append_result(self._own, line)

    def read(self, order: Mapping[str, int]) -> tuple[ResultLine, ...]:
        """The lines of all processes, once a key and in the order of the prompts; what is unknown comes last.

        Of two lines of one key the one with a winner counts.

        Raises:
            ConfigError: if a file cannot be read.
        """
        from difalign.core.errors import ConfigError

        by_key: dict[str, ResultLine] = {}
        try:
            for folder in (self.out, *self._of_processes()):
                for line in read_results(folder):
                    if line.winner is not None or line.key not in by_key:
                        by_key[line.key] = line
        except ValueError as error:
            raise ConfigError(f"--out {str(self.out)!r}: {error}; correct the file, or use another --out") from error
        last = len(order)
        return tuple(sorted(by_key.values(), key=lambda line: (order.get(line.key, last), line.key)))

    def join(self, lines: Sequence[ResultLine]) -> None:
        """Write what ``read`` gave into one file; to be called by one process, while no other writes."""
        if lines:
            write_results(self.out, lines)
        for folder in self._of_processes():
            shutil.rmtree(folder)

    def _of_processes(self) -> list[Path]:
        return sorted((self.out / UNFINISHED).glob("rank*"))

    def clear(self) -> None:
        """Remove what only an unfinished run needs."""
        shutil.rmtree(self.out / UNFINISHED, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class StateFile:
    """Where prompts that are walked together stand after their last stage, latents and the pictures seen so far.

    The name says which prompts under which settings, so that another process, or another number of them, finds it.
    """

    out: Path
    name: str

    @classmethod
    def of(cls, out: Path, keys: Sequence[str]) -> StateFile:
        """The file of the prompts with these keys."""
        return cls(out, hashlib.sha256("\n".join(keys).encode()).hexdigest()[:24])

    @property
    def _state(self) -> Path:
        return self.out / UNFINISHED / f"{self.name}.state.safetensors"

    @property
    def _pictures(self) -> Path:
        return self.out / UNFINISHED / f"{self.name}.looks.safetensors"

    def save(self, state: State) -> None:
        """Replace what was saved before; pictures first, so that no state lacks its own."""
        import os

        from safetensors.torch import save_file

        from difalign.search.state import save_state

        self._state.parent.mkdir(parents=True, exist_ok=True)
        pictures = {
            f"{prompt}.{i}": look.pictures.contiguous()
            for prompt, looks in enumerate(state.looks)
            for i, look in enumerate(looks)
            if look.pictures is not None
        }
        aside = self._pictures.with_suffix(".writing")
        save_file(pictures, aside)
        os.replace(aside, self._pictures)
        save_state(state, self._state)

    def load(self) -> State | None:
        """What was saved last; None where nothing was."""
        from safetensors.torch import load_file

        from difalign.search.state import load_state

        if not (self._state.is_file() and self._pictures.is_file()):
            return None
        state, pictures = load_state(self._state), load_file(self._pictures)
        looks = tuple(
            tuple(replace(look, pictures=pictures.get(f"{prompt}.{i}")) for i, look in enumerate(of_prompt))
            for prompt, of_prompt in enumerate(state.looks)
        )
        return replace(state, looks=looks)

    def remove(self) -> None:
        """Forget it: the prompts are done."""
        self._state.unlink(missing_ok=True)
        self._pictures.unlink(missing_ok=True)
