"""Do all processes of a run answer, run the same code on the same configuration, and see the same run folder?

Asked before any model is loaded: what differs between two machines otherwise shows hours later, as a hang or as a
result that nobody can explain. Every check ends alike on all processes, so none is left waiting for another.
"""

from __future__ import annotations

import contextlib
import hashlib
import platform
import secrets
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from difalign.core.config import RunConfig
from difalign.core.config_diff import flatten
from difalign.core.errors import ConfigError, in_one_message
from difalign.core.prompts import Prompt
from difalign.report.environment import PACKAGES, package_versions
from difalign.train.runtime import Runtime

_ANSWER_SECONDS = 120.0  # for all processes to come to the first meeting
_FOLDER_SECONDS = 20.0  # for a file to appear on another machine: network file systems cache what a folder holds
_LOOK_AGAIN_SECONDS = 0.1
_SHOWN_DIFFERENCES = 8
_PACKAGE = Path(__file__).resolve().parents[1]

_GRID_BYTES = 3_000_000  # 36 photographs of 256 pixels a side, as PNG; drawings take far less
_RECORD_BYTES = 400  # one scored sample in an evaluation's JSON
_ROW_BYTES = 1_000  # one line of metrics
_SPARE = 1.1  # of what is needed, since these are estimates


def call_roll(config: RunConfig, runtime: Runtime) -> None:
    """Check that all processes answer, agree, and see the run's folder; nothing is left in it.

    Raises:
        ConfigError: naming the process and what is different there.
        RuntimeError: if a process does not answer, or the processes cannot add two numbers.
    """
    check_collectives(runtime)
    require_same(runtime, {**code_facts(), **config_facts(config)})
    check_folder(runtime, config.run_folder)


def check_collectives(runtime: Runtime, *, patience: float = _ANSWER_SECONDS) -> None:
    """One collective of each kind that training uses, with an answer that is known.

    Raises:
        RuntimeError: if a process does not come within ``patience`` seconds, or an answer is wrong.
    """
    if runtime.world == 1:
        return
    runtime.meet(patience)
    ranks, world = list(range(runtime.world)), runtime.world
    answers = {
        "sum": (runtime.total([float(runtime.rank), 1.0]), [float(sum(ranks)), float(world)]),
        "gather": (runtime.gather([runtime.rank]), ranks),
        "broadcast": (runtime.agree(runtime.rank), 0),
    }
    wrong = [f"{name} gave {found}, not {expected}" for name, (found, expected) in answers.items() if found != expected]
    if wrong:
        raise RuntimeError(
            f"process {runtime.rank} of {world} cannot talk to the others: {'; '.join(wrong)}; "
            "launch every process of the run with the same number of processes"
        )


def require_same(runtime: Runtime, facts: Mapping[str, str]) -> None:
    """Check that every process holds the same facts.

    Raises:
        ConfigError: on all processes alike, naming each process that differs from the first, and in what.
    """
    everyone = runtime.gather([dict(facts)])
    first = everyone[0]
    differences = [
        f"process {rank}: {name} is {mine.get(name, 'missing')}, and on process 0 {first.get(name, 'missing')}"
        for rank, mine in enumerate(everyone)
        for name in sorted(first.keys() | mine.keys())
        if mine.get(name) != first.get(name)
    ]
    if differences:
        more = len(differences) - _SHOWN_DIFFERENCES
        shown = differences[:_SHOWN_DIFFERENCES] + ([f"... and {more} more"] if more > 0 else [])
        raise ConfigError(
            in_one_message(shown, source="the processes of the run differ")
            + "; give all of them the same installation, files and settings"
        )


def check_folder(runtime: Runtime, folder: Path, *, patience: float = _FOLDER_SECONDS) -> None:
    """Check that what the first process writes into the run's folder is there for all; leaves the disk as it was.

    Raises:
        ConfigError: if the folder cannot be written, or naming the processes that do not see it.
    """
    name = f".roll-call-{runtime.agree(secrets.token_hex(8))}"
    made: list[Path] = []
    problem = _write(folder, name, made) if runtime.is_main else None
    problem = runtime.agree(problem)
    blind = [] if problem is not None or _appears(folder / name, patience) else [runtime.rank]
    blind = runtime.gather(blind)
    if runtime.is_main:
        _remove(folder / name, made)
    if problem is not None:
        raise ConfigError(f"output_dir = {str(folder)!r}: cannot be written ({problem}); use another output_dir")
    if blind:
        raise ConfigError(
            f"output_dir = {str(folder)!r}: process {', '.join(map(str, blind))} does not see what process 0 writes "
            "there; use a folder that all machines share, by its absolute path"
        )


def check_space(runtime: Runtime, folder: Path, needed: int) -> None:
    """Check that the disk has room for what the run will write; the first process, which writes, says so for all.

    Raises:
        ConfigError: with what is needed and what is free.
    """
    free = runtime.agree(shutil.disk_usage(_existing(folder)).free if runtime.is_main else 0)
    if free < needed:
        raise ConfigError(
            f"output_dir = {str(folder)!r}: has {free / 1e6:,.1f} MB free, and the run will write about "
            f"{needed / 1e6:,.1f} MB; make room, or use an output_dir on another disk"
        )


def written_bytes(config: RunConfig, *, weights: int, heldout: int) -> int:
    """About how much a run writes: weights, grids with the report that repeats them, scores and metrics.

    Args:
        config: the run.
        weights: bytes of the trained weights, with all copies of them that lie in the folder at one time.
        heldout: held-out prompts of one evaluation.
    """
    scored = config.evaluations * heldout * config.evaluation.seeds_per_prompt
    looks = -(-config.training.rollouts // config.diagnostics.every) if config.diagnostics.every else 0
    pages = config.evaluations + 3  # before and after, and again in the report
    pages += looks + min(looks, 2)  # the leaves of trees, those of two rollouts in the report too
    return round(_SPARE * (weights + pages * _GRID_BYTES + scored * _RECORD_BYTES + config.updates * _ROW_BYTES))


def code_facts() -> dict[str, str]:
    """Versions of what computes, and a digest of this package's own source."""
    digest = hashlib.sha256()
    for file in sorted(_PACKAGE.rglob("*.py")):
        digest.update(file.relative_to(_PACKAGE).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    facts = {"python": platform.python_version(), **package_versions(PACKAGES)}
    return {**facts, "difalign's source": digest.hexdigest()[:16]}


def config_facts(config: RunConfig) -> dict[str, str]:
    """Every setting of a run by its dotted key."""
    return {key: repr(value) for key, value in flatten(config.model_dump(mode="json")).items()}


def prompt_facts(prompts: Mapping[str, Iterable[Prompt]]) -> dict[str, str]:
    """A digest of each list of prompts."""
    return {name: _digest(prompt.text for prompt in listed) for name, listed in prompts.items()}


def _digest(texts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]


def _write(folder: Path, name: str, made: list[Path]) -> str | None:
    """Make the folder and a file in it; what was made is added to ``made``. Returns why not, or None."""
    missing = [path for path in (*reversed(folder.parents), folder) if not path.exists()]
    try:
        for path in missing:
            path.mkdir(exist_ok=True)
            made.append(path)
        (folder / name).write_text("all processes of the run look for this file\n", encoding="utf-8")
    except OSError as error:
        return error.strerror or str(error)
    return None


def _remove(file: Path, made: Sequence[Path]) -> None:
    """Take away what ``_write`` left, as far as it goes: a folder that is in use by now stays."""
    with contextlib.suppress(OSError):
        file.unlink(missing_ok=True)
        for folder in reversed(made):
            folder.rmdir()


def _appears(file: Path, patience: float) -> bool:
    """Whether the file is there, or comes to be within ``patience`` seconds."""
    last = time.monotonic() + patience
    while not _is_there(file):
        if time.monotonic() >= last:
            return False
        time.sleep(_LOOK_AGAIN_SECONDS)
    return True


def _is_there(file: Path) -> bool:
    try:
        return file.name in {entry.name for entry in file.parent.iterdir()}  # listing asks the server again
    except OSError:
        return False


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())
