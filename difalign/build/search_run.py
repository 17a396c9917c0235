"""The search of many prompts: shared out over processes, a few at a time, each on the disk as soon as it is done.

A prompt that fails is listed and the others go on. Who shares the work, how many prompts are walked together and how
many rows a micro-batch has decides nothing about the winners, but where kernels round rows by their batch.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from difalign.build.search_files import (
    ResultFiles,
    StateFile,
    cost_record,
    plan_record,
    price_record,
    prompt_folder,
    write_prompt,
)
from difalign.build.search_preflight import SearchInputs, as_given
from difalign.build.search_task import OF_ONE_PROMPT, SearchTask, build_search
from difalign.core.errors import ConfigError
from difalign.report.environment import PACKAGES, git_commit, package_versions
from difalign.report.search_page import write_report
from difalign.report.search_records import (
    RUN_FILE,
    RUN_FORMAT,
    CostRecord,
    FailureRecord,
    ResultLine,
    RunRecord,
    TotalsRecord,
    read_run_record,
    write_run,
)

if TYPE_CHECKING:
    from difalign.search.budget import Cost
    from difalign.search.results import Found
    from difalign.train.progress import ProgressView
    from difalign.train.runtime import Runtime

_PATIENCE = 7 * 24 * 3600.0  # seconds; processes wait for one another only at the end, where shares may differ by far


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run left behind."""

    run: RunRecord
    lines: tuple[ResultLine, ...]
    unscored: int  # finished samples without a score, of this process


def run_search(inputs: SearchInputs, *, quiet: bool = False) -> Outcome | None:
    """Search every prompt and leave the folder; the outcome on the main process, None on the others.

    Raises:
        ConfigError: if something cannot be loaded or does not fit, the folder holds another search, or it can no
            longer be written, in which case what was written stays valid.
    """
    from difalign.train.disk import refused_by_disk
    from difalign.train.progress import progress_view

    assert inputs.out is not None
    runtime = _open_runtime()
    failed = True
    try:
        with progress_view(is_main=runtime.is_main and not quiet, unit="prompt", phases=True) as view:
            earlier = runtime.agree(_earlier(inputs) if runtime.is_main else None)
            task = _load(inputs, runtime, view, earlier)
            before = 0.0 if earlier is None else earlier["seconds"]
            run = _Run(task, runtime, view, package_versions(PACKAGES), before)
            outcome = run.everything()
        failed = False
    except OSError as error:
        if not refused_by_disk(error):
            raise
        raise ConfigError(
            f"--out {str(inputs.out)!r}: can no longer be written ({error}); what is there stays valid: make room, "
            "then the same command with --resume"
        ) from error
    finally:
        runtime.close(failed=failed)
    return outcome


def plan_search(inputs: SearchInputs) -> SearchTask | None:
    """Load what the search needs, measure prices and plan, writing nothing; None but on the main process.

    Raises:
        ConfigError: as ``run_search``.
    """
    import torch

    runtime = _open_runtime()
    failed = True
    try:
        device = torch.device(inputs.settings.device) if inputs.settings.device is not None else runtime.device
        task = build_search(inputs, device=device, agree=runtime.agree)
        failed = False
        return task if runtime.is_main else None
    finally:
        runtime.close(failed=failed)


def _open_runtime() -> Runtime:
    """The processes of the run; weights are whole on each."""
    from difalign.train.runtime import Runtime

    runtime = Runtime(wait_seconds=_PATIENCE)
    if runtime.shards:
        runtime.close(failed=True)
        raise ConfigError("a search shares prompts over processes, not weights; launch without FSDP")
    return runtime


def _load(inputs: SearchInputs, runtime: Runtime, view: ProgressView, earlier: dict[str, Any] | None) -> SearchTask:
    import torch

    device = torch.device(inputs.settings.device) if inputs.settings.device is not None else runtime.device
    candidates = None if earlier is None else earlier["candidates"]
    task = build_search(inputs, device=device, agree=runtime.agree, candidates=candidates)
    if earlier is not None:
        _check_same(inputs, earlier["resolved"], task)
    view.note(
        f"{inputs.method}: {task.plan.candidates} candidates a prompt, {task.plan.finished} finished, "
        f"{task.plan.cost.nfe} evaluations of the network; {len(inputs.mine)} prompts"
    )
    return task


def _earlier(inputs: SearchInputs) -> dict[str, Any] | None:
    """What a run said that is to be gone on with; None where there is none."""
    assert inputs.out is not None
    if not (inputs.settings.resume and (inputs.out / RUN_FILE).is_file()):
        return None
    try:
        run = read_run_record(inputs.out)
    except ValueError as error:
        raise ConfigError(f"--out {str(inputs.out)!r}: {error}; use another --out") from error
    budget = {"unit": next(iter(inputs.budget)), "amount": next(iter(inputs.budget.values()))}
    if run.resolved.get("budget") != budget:
        raise ConfigError(
            f"--resume: {inputs.out} was searched with the budget {run.resolved.get('budget')}, not {budget}; "
            "use the same, or another --out"
        )
    return {
        "candidates": None if run.plan is None else run.plan.candidates,
        "resolved": run.resolved,
        "seconds": run.totals.seconds or 0.0,
    }


def _check_same(inputs: SearchInputs, earlier: dict[str, Any], task: SearchTask) -> None:
    now = json.loads(json.dumps(task.deciding()))
    differing = [name for name in now if earlier.get(name) != now[name]]
    if differing:
        said = "; ".join(f"{name} was {earlier.get(name)!r} and is {now[name]!r}" for name in differing[:3])
        raise ConfigError(
            f"--resume: {inputs.out} holds another search: {said}; use the same settings, or another --out"
        )


@dataclass(slots=True)
class _Tally:
    """What this process has done since it began."""

    done: int = 0
    scores: list[float] = field(default_factory=list)
    unscored: int = 0
    spent: Cost | None = None  # of the prompts that are walked now


@dataclass(frozen=True, slots=True)
class _Run:
    """The search on one process."""

    task: SearchTask
    runtime: Runtime
    view: ProgressView
    software: dict[str, str]
    before: float  # seconds that went into the run before it was interrupted
    tally: _Tally = field(default_factory=_Tally)

    def everything(self) -> Outcome | None:
        """All prompts of this process; the main one joins what all have found."""
        inputs, begun = self.task.inputs, time.perf_counter()
        assert inputs.out is not None
        files = ResultFiles(inputs.out, self.runtime.rank, self.runtime.world)
        keys = {i: self.task.key(inputs.prompts[i]) for i in inputs.mine}
        order = {key: i for i, key in keys.items()}
        lines: tuple[ResultLine, ...] = ()
        if self.runtime.is_main:
            lines = files.read(order)
            self._check_places(lines, order)
            files.join(lines)
            write_run(inputs.out, self._record(lines, seconds=self.before))
        finished = set(self.runtime.agree([line.key for line in lines if line.winner is not None]))
        self.runtime.barrier()
        share = self.runtime.share(inputs.mine)
        left = [i for i in share if keys[i] not in finished]
        self.tally.done = len(share) - len(left)
        self._say(len(share))
        size = inputs.settings.prompts_in_flight
        for low in range(0, len(left), size):
            group = left[low : low + size]
            for line in self._group(group, [keys[i] for i in group]):
                files.append(line)
                self._count(line, len(share))
        self.runtime.barrier()
        if not self.runtime.is_main:
            return None
        lines = files.read(order)
        files.join(lines)
        run = self._record(lines, seconds=self.before + time.perf_counter() - begun)
        write_run(inputs.out, run)
        files.clear()
        write_report(inputs.out)
        return Outcome(run, lines, self.tally.unscored)

    def _check_places(self, lines: Sequence[ResultLine], order: dict[str, int]) -> None:
        """Prompts may have been added to the file since, but not moved: their folders bear their places."""
        for line in lines:
            if line.folder is not None and (line.key not in order or line.folder != prompt_folder(order[line.key])):
                raise ConfigError(
                    f"--resume: {line.prompt!r} lies in {line.folder} but is not at that place of the prompts now; "
                    "add prompts at the end only, or use another --out"
                )

    def _group(self, group: Sequence[int], keys: Sequence[str]) -> list[ResultLine]:
        """Some prompts walked together; where that fails, each by itself, so that only its own fault fails it."""
        from difalign.search.budget import Cost
        from difalign.train.disk import refused_by_disk

        begun = time.perf_counter()
        self.tally.spent = Cost()
        try:
            return self._found(group, keys, begun)
        except ConfigError:
            raise
        except OF_ONE_PROMPT as error:
            if refused_by_disk(error):
                raise
            if len(group) == 1:
                return [self._failure(group[0], keys[0], error, seconds=time.perf_counter() - begun)]
            return [line for i, key in zip(group, keys, strict=True) for line in self._group([i], [key])]

    def _found(self, group: Sequence[int], keys: Sequence[str], begun: float) -> list[ResultLine]:
        from difalign.search.engine import search

        task, inputs = self.task, self.task.inputs
        assert inputs.out is not None
        prompts = [inputs.prompts[i] for i in group]
        states = StateFile.of(inputs.out, keys)
        result = search(
            task.pipeline,
            task.reward,
            [prompt.text for prompt in prompts],
            method=task.method,
            candidates=task.plan.candidates,
            plan=task.noise,
            seed=inputs.settings.seed,
            preview=task.judge,
            branches=task.walk.branches,
            micro_batch=inputs.settings.micro_batch,
            metadata=[prompt.metadata for prompt in prompts],
            grid=task.grid,
            keep_pictures=True,
            state=states.load(),
            after_look=states.save,
            progress=self._progress,
        )
        assert result.cost == result.planned  # there is no limit that could cut it short
        seconds = (time.perf_counter() - begun) / len(group)
        lines = []
        for i, key, found in zip(group, keys, result.found, strict=True):
            cost = cost_record(task, task.plan.cost, seconds=seconds)
            folder = prompt_folder(i)
            scores = write_prompt(
                task, inputs.out / folder, found, cost=cost, software=self.software, cut_short=result.cut_short
            )
            self.tally.unscored += sum(score is None for score in scores.finish.scores)
            error = None if scores.winner is not None else _why_none(found)
            lines.append(ResultLine(key, found.prompt, folder, scores.winner, error, cost, seconds))
        states.remove()
        return lines

    def _failure(self, index: int, key: str, error: Exception, *, seconds: float) -> ResultLine:
        assert self.tally.spent is not None
        said = f"{type(error).__name__}: {error}".strip()
        cost = cost_record(self.task, self.tally.spent, seconds=seconds)
        return ResultLine(key, self.task.inputs.prompts[index].text, None, None, said, cost, seconds)

    def _progress(self, spent: Cost, planned: Cost) -> None:
        self.tally.spent = spent
        best = f"best {max(self.tally.scores):.3f}" if self.tally.scores else "evaluations"
        self.view.phase(best, spent.nfe, planned.nfe)

    def _count(self, line: ResultLine, total: int) -> None:
        self.tally.done += 1
        if line.winner is not None:
            self.tally.scores.append(line.winner.score)
        else:
            self.view.note(f"failed: {line.prompt!r}: {line.error}")
        self._say(total)

    def _say(self, total: int) -> None:
        scores = self.tally.scores
        said = f"winners: mean {sum(scores) / len(scores):.4g}, last {scores[-1]:.4g}" if scores else ""
        self.view.run(self.tally.done, total, said)

    def _record(self, lines: Sequence[ResultLine], *, seconds: float) -> RunRecord:
        from pathlib import Path

        task, inputs = self.task, self.task.inputs
        unit, amount = next(iter(inputs.budget.items()))
        resolved = json.loads(json.dumps(task.deciding()))
        resolved |= {
            "budget": {"unit": unit, "amount": amount},
            "accounting": inputs.settings.accounting,
            "micro_batch": inputs.settings.micro_batch,
            "prompts_in_flight": inputs.settings.prompts_in_flight,
            "save": inputs.settings.save,
            "processes": self.runtime.world,
            "shard": inputs.settings.shard,
        }
        given = {name: value for name, value in as_given(inputs.settings).items() if name not in ("out", "resume")}
        return RunRecord(
            format=RUN_FORMAT,
            settings=json.loads(json.dumps(given)),
            resolved=resolved,
            software=self.software,
            git_commit=git_commit(Path(__file__)),
            device=_device_name(task),
            prices={name: price_record(price) for name, price in task.prices.of.items()},
            plan=plan_record(task, seconds=foretold_seconds(task)),
            totals=TotalsRecord(len(inputs.mine), len(lines), _sum([line.cost for line in lines]), seconds),
            failures=tuple(FailureRecord(line.prompt, line.error) for line in lines if line.error is not None),
        )


def foretold_seconds(task: SearchTask) -> float:
    """The time that one prompt will take, as many walked together as will be."""
    from difalign.search.prices import predicted_seconds

    settings = task.inputs.settings
    together = min(settings.prompts_in_flight, len(task.inputs.mine))
    seconds = predicted_seconds(task.prices, task.plan, task.walk, prompts=together, micro_batch=settings.micro_batch)
    return seconds / together


def _why_none(found: Found) -> str:
    first = next(iter(found.finish.errors.items()), None)
    reason = "" if first is None else f"; candidate {first[0]}: {first[1]}"
    return f"no finished sample has a score{reason}"


def _sum(costs: Sequence[CostRecord]) -> CostRecord:
    def total(values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return sum(known) if len(known) == len(values) else None

    return CostRecord(
        sum(cost.nfe for cost in costs),
        sum(cost.decodes for cost in costs),
        sum(cost.scores for cost in costs),
        sum(cost.previews for cost in costs),
        total([cost.tflops for cost in costs]),
        total([cost.seconds for cost in costs]),
    )


def _device_name(task: SearchTask) -> str:
    import torch

    device = task.pipeline.device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
