"""What a search leaves on the disk, as data: a prompt's ``scores.json``, a line of ``results.jsonl``, and ``run.json``.

Reading is strict: a key too many or too few, a wrong type, a candidate that does not exist or a winner that did not win
is an error that names the file and the key. A missing score is null, never a number.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, ClassVar, Literal, TypeVar

from pydantic import ConfigDict, Field, JsonValue

from difalign.report.log import write_text_atomically
from difalign.report.search_checks import check_scores

if TYPE_CHECKING:
    from pydantic import TypeAdapter

RUN_FILE = "run.json"
RESULTS_FILE = "results.jsonl"
SCORES_FILE = "scores.json"
WINNER_FILE = "winner.png"
GRID_FILE = "grid.png"
RUN_FORMAT = "difalign-search-run/1"
SCORES_FORMAT = "difalign-search-scores/1"
IDENTITY = ("pipeline", "method", "reward", "seed", "steps")  # what ``RunRecord.resolved`` says at least

_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
_Count = Annotated[int, Field(ge=0)]
_Amount = Annotated[float, Field(ge=0)]
_Sigma = Annotated[float, Field(gt=0)]
_Record = TypeVar("_Record")


@dataclass(frozen=True, slots=True)
class CostRecord:
    """What was computed, or is planned to be; None where no price in that unit is known."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    nfe: _Count  # rows through the network, both branches of guidance counted
    decodes: _Count
    scores: _Count  # rows through any reward
    previews: _Count  # of these, rows through the judge of estimates
    tflops: _Amount | None = None
    seconds: _Amount | None = None


@dataclass(frozen=True, slots=True)
class LookRecord:
    """One look at the candidates of a prompt; its scores are comparable with one another and with no others."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    step: _Count
    sigma: _Sigma | None  # None: finished samples
    judge: str | None  # name of the reward; None: nothing was scored
    sources: tuple[Literal["guided", "conditional", "state"], ...]  # what the judge read; empty: finished samples
    decoded: bool  # whether it read pictures
    index: tuple[_Count, ...]  # [A] candidates that were alive
    scores: tuple[float | None, ...]  # [A]
    components: dict[str, tuple[float | None, ...]]  # name -> [A]
    errors: dict[int, str]  # candidate -> why it has no score
    kept: tuple[_Count, ...]  # candidates that went on, the best first
    sheet: str | None = None  # contact sheet, path below the folder of the prompt; tiles in the order of ``index``

    def score_of(self, candidate: int) -> float | None:
        """The score of a candidate that was alive."""
        return self.scores[self.index.index(candidate)]


@dataclass(frozen=True, slots=True)
class WinnerRecord:
    """The candidate that was chosen."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    index: _Count
    seed: _Count
    score: float  # as a finished picture


@dataclass(frozen=True, slots=True)
class ScoresRecord:
    """The search of one prompt."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    format: Literal["difalign-search-scores/1"]
    prompt: str
    seeds: tuple[_Count, ...]  # [N] of all candidates
    looks: tuple[LookRecord, ...]  # on the way
    finish: LookRecord  # finished samples; ``kept`` is the winner alone, or empty
    winner: WinnerRecord | None  # None: no finished sample has a score
    cost: CostRecord
    software: dict[str, str]  # package -> version
    ranked_by: Literal["score", "rank_sum"] = "score"  # what orders finished samples
    cut_short: bool = False  # whether a limit left only the leader
    candidates: dict[int, str] = field(default_factory=dict)  # candidate -> its picture, path as ``sheet``


@dataclass(frozen=True, slots=True)
class ResultLine:
    """One line of ``results.jsonl``: a prompt that is done, or that failed."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    key: str  # of prompt, metadata and every setting that decides the result
    prompt: str
    folder: str | None  # below the folder of the run; None where nothing was written
    winner: WinnerRecord | None
    error: str | None  # why there is no winner
    cost: CostRecord
    seconds: _Amount  # by the clock, everything of this prompt


@dataclass(frozen=True, slots=True)
class PriceRecord:
    """What one row costs in one unit."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    nfe: _Amount
    decode: _Amount
    score: _Amount
    preview: _Amount | None = None  # None: as ``score``


@dataclass(frozen=True, slots=True)
class StageRecord:
    """One planned look."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    step: _Count
    sigma: _Sigma
    alive: _Count  # candidates looked at
    kept: _Count


@dataclass(frozen=True, slots=True)
class PlanRecord:
    """The forecast of one prompt."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    candidates: _Count
    finished: _Count  # candidates walked to the end
    steps: _Count
    stages: tuple[StageRecord, ...]
    cost: CostRecord


@dataclass(frozen=True, slots=True)
class FailureRecord:
    """A prompt that has no winner."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    prompt: str
    error: str


@dataclass(frozen=True, slots=True)
class TotalsRecord:
    """The run as a whole."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    prompts: _Count  # asked for
    done: _Count  # with a line in ``results.jsonl``, failures included
    cost: CostRecord  # of all that is done
    seconds: _Amount | None = None  # by the clock, loading excluded


@dataclass(frozen=True, slots=True)
class RunRecord:
    """``run.json``."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    format: Literal["difalign-search-run/1"]
    settings: dict[str, JsonValue]  # as given
    resolved: dict[str, JsonValue]  # with every default; has at least the keys of ``IDENTITY``
    software: dict[str, str]  # package -> version
    git_commit: str | None
    device: str
    prices: dict[Literal["nfe", "tflops", "seconds"], PriceRecord]
    plan: PlanRecord | None  # of each prompt; None where it is not known yet
    totals: TotalsRecord
    failures: tuple[FailureRecord, ...]


def write_run(folder: Path, run: RunRecord) -> Path:
    """Write ``run.json``, whole or not at all."""
    return _write(folder / RUN_FILE, RunRecord, run)


def read_run_record(folder: Path) -> RunRecord:
    """The ``run.json`` of a folder.

    Raises:
        ValueError: if there is none or it is not one, with the key.
    """
    path = folder / RUN_FILE
    run = _parse(RunRecord, _text(path), path.name)
    for key in IDENTITY:
        if key not in run.resolved:
            raise ValueError(f"{path.name}: resolved.{key} is missing; it was not written by difalign search")
    return run


def write_scores(folder: Path, scores: ScoresRecord) -> Path:
    """Write ``scores.json`` of a prompt, whole or not at all.

    Raises:
        ValueError: if it contradicts itself: what is written can be read.
    """
    path = folder / SCORES_FILE
    check_scores(scores, path.name)
    return _write(path, ScoresRecord, scores)


def read_scores(folder: Path) -> ScoresRecord:
    """The ``scores.json`` of a prompt's folder; every picture that it names is there.

    Raises:
        ValueError: if it is missing or broken, contradicts itself, or names a file that does not exist.
    """
    path = folder / SCORES_FILE
    name = f"{folder.name}/{path.name}"
    scores = _parse(ScoresRecord, _text(path), name)
    check_scores(scores, name)
    named = {f"looks.{i}.sheet": look.sheet for i, look in enumerate(scores.looks)}
    named |= {"finish.sheet": scores.finish.sheet, "winner": WINNER_FILE if scores.winner else None}
    named |= {f"candidates.{i}": picture for i, picture in scores.candidates.items()}
    for key, picture in named.items():
        if picture is not None and not _below(folder, picture, f"{name}: {key}").is_file():
            raise ValueError(f"{name}: {key} names {picture}, which does not exist")
    return scores


def append_result(folder: Path, line: ResultLine) -> None:
    """Append one line to ``results.jsonl``, safely on the disk on return; a torn last line is cut off first."""
    path = folder / RESULTS_FILE
    text = _dump(ResultLine, line, path.name, indent=None)
    folder.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        _cut_torn_line(file)
        file.write(text.encode("utf-8") + b"\n")
        file.flush()
        os.fsync(file.fileno())


def write_results(folder: Path, lines: Sequence[ResultLine]) -> Path:
    """Write ``results.jsonl`` anew with these lines, whole or not at all."""
    path = folder / RESULTS_FILE
    write_text_atomically(path, "".join(_dump(ResultLine, line, path.name, indent=None) + "\n" for line in lines))
    return path


def read_results(folder: Path) -> tuple[ResultLine, ...]:
    """The lines of ``results.jsonl`` in their order; none without the file. A torn last line is ignored.

    Raises:
        ValueError: if a whole line is broken, or names a folder outside the run's.
    """
    path = folder / RESULTS_FILE
    content = path.read_bytes() if path.is_file() else b""
    lines = content[: _whole_lines(content)].splitlines()
    results = []
    for number, text in enumerate(lines, start=1):
        name = f"{path.name} line {number}"
        line = _parse(ResultLine, text, name)
        if (line.winner is None) != (line.error is not None):
            raise ValueError(f"{name}: a prompt has either a winner or an error, and this has both or neither")
        if line.folder is not None:
            _below(folder, line.folder, f"{name}: folder")
        results.append(line)
    return tuple(results)


def _below(folder: Path, named: str, key: str) -> Path:
    parts = Path(named).parts
    if Path(named).is_absolute() or ".." in parts or not parts:
        raise ValueError(f"{key} is {named!r}; it must be a path below {folder.name}")
    return folder / named


def _cut_torn_line(file: BinaryIO) -> None:
    end = file.seek(0, os.SEEK_END)
    if end:
        file.seek(end - 1)
        if file.read(1) != b"\n":
            file.seek(0)
            file.truncate(_whole_lines(file.read()))


def _whole_lines(content: bytes) -> int:
    """How many bytes are lines that came to their end."""
    return content.rfind(b"\n") + 1


@cache
def _adapter(kind: type[Any]) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _parse(kind: type[_Record], text: str | bytes, name: str) -> _Record:
    from pydantic import ValidationError

    try:
        return _adapter(kind).validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        key = ".".join(str(part) for part in first["loc"]) or "the whole"
        more = error.error_count() - 1
        raise ValueError(f"{name}: {key}: {first['msg']}" + (f" (and {more} more)" if more else "")) from error


def _dump(kind: type[Any], value: object, name: str, *, indent: int | None) -> str:
    plain: Mapping[str, Any] = _adapter(kind).dump_python(value, mode="json", warnings=False)
    text = json.dumps(plain, indent=indent, ensure_ascii=False)
    _parse(kind, text, name)  # what is written can be read
    return text


def _write(path: Path, kind: type[Any], value: object) -> Path:
    write_text_atomically(path, _dump(kind, value, path.name, indent=1) + "\n")
    return path


def _text(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
