"""The writer of a run folder: metrics line by line, everything else whole or not at all."""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from difalign.report.alarms import Alarm, alarm_to_json
from difalign.report.diagnostics import Diagnostics, diagnostics_to_json
from difalign.report.records import Evaluation, evaluation_to_json

if TYPE_CHECKING:
    from difalign.report.images import ImageBatch

METRICS_FILE = "metrics.jsonl"
ALARMS_FILE = "alarms.jsonl"
SUMMARY_FILE = "summary.json"
CONFIG_FILE = "config.yaml"
ENVIRONMENT_FILE = "environment.json"
EVALUATIONS_FOLDER = "evaluations"
DIAGNOSTICS_FOLDER = "diagnostics"
REPORT_FILE = "report.html"
BEFORE_AFTER_FILE = "before_after.png"


def plain(value: object) -> Any:
    """``value`` as what JSON can hold.

    Scalars of numpy and torch become numbers, paths become text, mappings and sequences are walked. A number
    that is not finite becomes the text "NaN", "Infinity" or "-Infinity", which keeps the file valid JSON and
    says more than null.

    Raises:
        ValueError: if the value has no JSON form.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return float(value)
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Path):
        return value.as_posix()
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [plain(item) for item in value]
    item = getattr(value, "item", None)
    if callable(item) and getattr(value, "shape", None) == ():
        return plain(item())
    raise ValueError(f"{value!r} ({type(value).__name__}) cannot be written as JSON; pass numbers, text or lists")


def write_text_atomically(path: Path, text: str) -> None:
    """Write beside ``path``, then rename: a reader sees the old file or the new one, never half of it."""
    write_bytes_atomically(path, text.encode("utf-8"))


def write_bytes_atomically(path: Path, content: bytes) -> None:
    """Like ``write_text_atomically``, for bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)  # mkstemp makes 0600, which would hide the file from other readers
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@dataclass(frozen=True, slots=True)
class FileMark:
    """How far a file that a run only adds to had come at one moment."""

    size: int  # bytes
    sha256: str  # of those bytes


@dataclass(frozen=True, slots=True)
class LogMark:
    """How far a run folder had come at one moment."""

    metrics: FileMark
    alarms: FileMark
    evaluations: tuple[str, ...]  # names of the JSON files
    diagnostics: tuple[str, ...] = ()  # likewise

    def of_files(self) -> dict[str, FileMark]:
        """Each file that is only added to, by name."""
        return {METRICS_FILE: self.metrics, ALARMS_FILE: self.alarms}


def find_mismatch(folder: Path, mark: LogMark) -> str | None:
    """Why a run folder cannot be taken back to ``mark``, in a few words; None if it can."""
    for name, then in mark.of_files().items():
        content = _content(folder / name)
        if len(content) < then.size:
            return f"{name} of the run has {len(content)} bytes, fewer than the {then.size} it had then"
        if _sha256(content[: then.size]) != then.sha256:
            return f"{name} of the run holds other rows than it held then"
    return None


class RunLog:
    """Writes one run folder; use it on the main process only.

    ``metrics.jsonl`` gets one object a line; in it ``seconds``, ``denoiser_forwards`` and ``reward_calls``
    are totals since the start of the run. A run that is resumed is first taken back to its checkpoint.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)

    def clear(self) -> None:
        """Remove what an earlier run wrote here, and nothing else."""
        for name in (
            METRICS_FILE,
            ALARMS_FILE,
            SUMMARY_FILE,
            CONFIG_FILE,
            ENVIRONMENT_FILE,
            REPORT_FILE,
            BEFORE_AFTER_FILE,
        ):
            (self.folder / name).unlink(missing_ok=True)
        for folder in (EVALUATIONS_FOLDER, DIAGNOSTICS_FOLDER):
            for path in self._numbered(folder, ".json", ".png"):
                path.unlink()

    def mark(self) -> LogMark:
        """Where the log stands, once it is safely on the disk."""
        evaluations, diagnostics = (
            tuple(sorted(path.name for path in self._numbered(folder, ".json")))
            for folder in (EVALUATIONS_FOLDER, DIAGNOSTICS_FOLDER)
        )
        return LogMark(self._mark_of(METRICS_FILE), self._mark_of(ALARMS_FILE), evaluations, diagnostics)

    def return_to(self, mark: LogMark) -> None:
        """Take away what was written after ``mark``: later rows and files, and what an end left behind."""
        for name in (SUMMARY_FILE, REPORT_FILE):
            (self.folder / name).unlink(missing_ok=True)
        for folder, names in ((EVALUATIONS_FOLDER, mark.evaluations), (DIAGNOSTICS_FOLDER, mark.diagnostics)):
            kept = {Path(name).stem for name in names}
            for path in self._numbered(folder, ".json", ".png"):
                if path.stem not in kept:
                    path.unlink()
        for name, then in mark.of_files().items():
            path = self.folder / name
            if not then.size:  # a run that had no alarm leaves no empty file
                path.unlink(missing_ok=True)
            elif path.exists():
                with path.open("r+b") as file:
                    file.truncate(then.size)
                    os.fsync(file.fileno())

    def append_metrics(self, row: Mapping[str, object]) -> None:
        """Append one row; the whole line goes out in one write, so that a crash leaves at most a broken last line."""
        self._append(METRICS_FILE, row)

    def append_alarm(self, alarm: Alarm) -> None:
        """Append one alarm to ``alarms.jsonl``, which is there only if there was any."""
        self._append(ALARMS_FILE, alarm_to_json(alarm))

    def _append(self, name: str, row: Mapping[str, object]) -> None:
        line = json.dumps(plain(row), allow_nan=False, ensure_ascii=False) + "\n"
        path = self.folder / name
        if _lacks_final_newline(path):
            line = "\n" + line  # the line a crash cut off must not swallow this one
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line.encode("utf-8"))
        finally:
            os.close(descriptor)

    def write_evaluation(
        self, evaluation: Evaluation, *, images: ImageBatch | None = None, shown: Sequence[int] | None = None
    ) -> Path:
        """Write ``evaluations/NNNNNN.json``, and the grid ``NNNNNN.png`` if there are images.

        Args:
            evaluation: the scores of every sample; its rollout gives the file its number.
            images: [M, C, H, W] in [0, 1], the samples to show.
            shown: the M indices into ``evaluation.records`` that the images belong to; the first M by default.

        Returns:
            The path of the JSON file. A second evaluation at the same rollout under another label is kept
            beside the first as ``NNNNNN-label.json``.
        """
        path = self._evaluation_path(evaluation)
        if images is not None:
            from difalign.report.images import labelled_grid, save_grid

            indices = tuple(range(len(images))) if shown is None else tuple(shown)
            records = [evaluation.records[index] for index in indices]
            save_grid(labelled_grid(images, records), path.with_suffix(".png"))
        self._write_json(path, evaluation_to_json(evaluation))
        return path

    def write_diagnostics(self, diagnostics: Diagnostics, pictures: Sequence[ImageBatch] = ()) -> Path:
        """Write ``diagnostics/NNNNNN.json``, and the leaves' pictures ``NNNNNN.png`` if there are any.

        Args:
            diagnostics: its rollout gives the file its number.
            pictures: for every prompt the pictures of its leaves, [L, C, H, W] in [0, 1], all of one size; L = 0 where
                samples are no pictures.
        """
        path = self.folder / DIAGNOSTICS_FOLDER / f"{diagnostics.rollout:06d}.json"
        if any(len(batch) for batch in pictures):
            from difalign.report.images import leaf_grid, save_grid

            save_grid(leaf_grid(diagnostics.prompts, pictures), path.with_suffix(".png"))
        text = json.dumps(plain(diagnostics_to_json(diagnostics)), separators=(",", ":"), allow_nan=False)
        write_text_atomically(path, text + "\n")
        return path

    def write_summary(self, summary: Mapping[str, object]) -> Path:
        """Write ``summary.json``; its presence says that the run came to its end."""
        return self._write_json(self.folder / SUMMARY_FILE, summary)

    def write_environment(self, environment: Mapping[str, object]) -> Path:
        """Write ``environment.json``."""
        return self._write_json(self.folder / ENVIRONMENT_FILE, environment)

    def write_config(self, yaml_text: str) -> Path:
        """Write ``config.yaml``, the resolved configuration as text."""
        path = self.folder / CONFIG_FILE
        write_text_atomically(path, yaml_text if yaml_text.endswith("\n") else yaml_text + "\n")
        return path

    def _mark_of(self, name: str) -> FileMark:
        path = self.folder / name
        content = _content(path)
        if content:
            with path.open("rb") as file:
                os.fsync(file.fileno())
        return FileMark(len(content), _sha256(content))

    def _numbered(self, folder: str, *suffixes: str) -> list[Path]:
        """The files that the run has left in a folder, and nothing that a user put beside them."""
        found = (self.folder / folder).glob("[0-9]" * 6 + "*")
        return [path for path in found if path.suffix in suffixes]

    def _write_json(self, path: Path, value: Mapping[str, object]) -> Path:
        write_text_atomically(path, json.dumps(plain(value), indent=2, allow_nan=False, ensure_ascii=False) + "\n")
        return path

    def _evaluation_path(self, evaluation: Evaluation) -> Path:
        folder = self.folder / EVALUATIONS_FOLDER
        path = folder / f"{evaluation.rollout:06d}.json"
        if path.exists() and _label_of(path) != evaluation.label:
            safe = "".join(letter if letter.isalnum() else "_" for letter in evaluation.label)
            return folder / f"{evaluation.rollout:06d}-{safe}.json"
        return path


def _content(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _label_of(path: Path) -> str | None:
    try:
        return json.loads(path.read_text(encoding="utf-8")).get("label")
    except (ValueError, AttributeError):
        return None


def _lacks_final_newline(path: Path) -> bool:
    if not path.exists() or path.stat().st_size == 0:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"
