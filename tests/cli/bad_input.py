"""Cases of bad input, and the interpreter that meets them: it cannot import a library for models."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.folders import file_contents
from tests.house.repository import ROOT

LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "ACCELERATE_MIXED_PRECISION")
EARLIER_RUN = {"runs/earlier/config.yaml": "seed: 7\n", "runs/earlier/checkpoints/000020/weights.safetensors": "mine"}
LIBRARIES = ("torch", "diffusers", "transformers", "accelerate", "peft")

Prepare = Callable[[Path], object]


def nothing_more(folder: Path) -> None:
    """Leave a folder as it is."""


@dataclass(frozen=True)
class Bad:
    """A command line in a folder with files, and what the message must hold: the value or key, and the remedy."""

    name: str
    arguments: tuple[str, ...]  # of ``difalign``
    said: tuple[str, ...]
    files: Mapping[str, str | bytes] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    prepare: Prepare = nothing_more  # whatever else the folder needs

    def fill(self, folder: Path) -> Path:
        """Write the files, and a run that nothing may touch."""
        for name, content in {**EARLIER_RUN, **self.files}.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        self.prepare(folder)
        return folder


@dataclass(frozen=True)
class Outcome:
    """What a command did."""

    code: int | str | None
    stdout: str
    stderr: str
    before: Mapping[str, bytes]
    after: Mapping[str, bytes]


def train(name: str, arguments: Sequence[str], *said: str, **files: str | bytes) -> Bad:
    """``difalign train`` with arguments; the names of files are given as ``my_yaml`` for ``my.yaml``."""
    return Bad(name, ("train", *arguments), said, {key.replace("_", "."): value for key, value in files.items()})


def setting(name: str, argument: str, *said: str) -> Bad:
    """One setting of ``difalign train``."""
    return Bad(name, ("train", argument), said)


def named(cases: Sequence[Bad], *names: str) -> list[Bad]:
    """Some of the cases, in the order of their names."""
    by_name = {bad.name: bad for bad in cases}
    assert len(by_name) == len(cases), "two cases of one name"
    return [by_name[name] for name in names]


def meet(cases: Sequence[Bad], folder: Path) -> dict[str, Outcome]:
    """Run every case in a folder of its own, one after another in a fresh interpreter that knows no model library."""
    folders = [bad.fill(folder / f"{index:03d}") for index, bad in enumerate(cases)]
    before = [file_contents(place) for place in folders]
    jobs = [
        {"folder": str(place), "arguments": bad.arguments, "environment": dict(bad.environment)}
        for bad, place in zip(cases, folders, strict=True)
    ]
    done = subprocess.run(
        [sys.executable, "-m", "tests.cli.bad_input_worker", *LIBRARIES],
        input=json.dumps(jobs),
        env=_environment({}),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    return {
        bad.name: Outcome(**answer, before=was, after=file_contents(place))
        for bad, answer, was, place in zip(cases, said, before, folders, strict=True)
    }


def meet_alone(bad: Bad, folder: Path) -> Outcome:
    """Run one case as its user would, in a process of its own; the last line says which libraries were loaded."""
    before = file_contents(bad.fill(folder))
    code = (
        "import atexit, sys\n"
        f"loaded = lambda: sorted(set(sys.modules) & set({LIBRARIES!r}))\n"
        "atexit.register(lambda: sys.stderr.write(f'\\n{loaded()}'))\n"
        "from difalign.cli.app import main\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *bad.arguments],
        cwd=folder,
        env=_environment(bad.environment),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    *message, loaded = done.stderr.splitlines()
    assert loaded == "[]"
    return Outcome(done.returncode, done.stdout, "\n".join(message).strip() + "\n", before, file_contents(folder))


def assert_refused(bad: Bad, outcome: Outcome) -> None:
    """One message with the value and the remedy, exit code 2, and every file as it was."""
    assert outcome.code == 2, outcome.stderr
    assert outcome.stdout == ""
    assert outcome.stderr.startswith("error: ")
    assert outcome.stderr.count("error: ") == 1
    assert not any(word in outcome.stderr for word in ("Traceback", "pydantic", "  File "))
    missing = [text for text in bad.said if text not in outcome.stderr]
    assert not missing, f"{missing} is not in: {outcome.stderr}"
    assert outcome.after == outcome.before


def _environment(more: Mapping[str, str]) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if name not in LAUNCHER_VARIABLES}
    return {**own, "PYTHONPATH": os.pathsep.join([str(ROOT), own.get("PYTHONPATH", "")]).rstrip(os.pathsep), **more}
