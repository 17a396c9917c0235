"""Folders that a run cannot be written into, and checkpoints that it cannot go on from."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.bad_input import Bad, Outcome, assert_refused, meet, meet_alone, named, train
from tests.cli.stored_run import store_run

_RESUME = ("output_dir=out", "resume=latest")


def stored(name: str, damage: Callable[[Path], object], *said: str, settings: tuple[str, ...] = _RESUME) -> Bad:
    """A run with the checkpoint 000020, after ``damage`` to that checkpoint."""
    return Bad(name, ("train", *settings), said, prepare=lambda folder: damage(store_run(folder / "out")))


def sound(checkpoint: Path) -> None:
    """Damage nothing."""


def rewritten(file: str, old: str, new: str) -> Callable[[Path], object]:
    return lambda checkpoint: (checkpoint / file).write_text((checkpoint / file).read_text().replace(old, new))


def renumbered(checkpoint: Path) -> None:
    checkpoint.rename(checkpoint.with_name("000040"))


def foreign(folder: Path) -> None:
    """A checkpoint of another program, and of another run."""
    (folder / "out" / "checkpoints" / "000020").mkdir(parents=True)
    (folder / "out" / "checkpoints" / "000020" / "pytorch_model.bin").write_bytes(b"PK")


def two_runs(folder: Path) -> None:
    store_run(folder / "out")
    store_run(folder / "other", rollouts=30)


OUTPUT = [
    train("output is a file", ("output_dir=out",), "output_dir = 'out'", "not a folder", out="x"),
    train("output below a file", ("output_dir=out/run",), "not a folder", "another output_dir", out="x"),
    train("output below a device", ("output_dir=/dev/null/run",), "/dev/null is not a folder", "another output_dir"),
    train("name too long", (f"output_dir={'a' * 300}",), "cannot be used (File name too long)", "another output_dir"),
    Bad(
        "output below a link in a circle",
        ("train", "output_dir=loop/run"),
        ("output_dir = 'loop/run'", "use another output_dir"),
        prepare=lambda folder: (folder / "loop").symlink_to("loop"),
    ),
    Bad(
        "output is a link to nowhere",
        ("train", "output_dir=link"),
        ("link is not a folder", "use another output_dir"),
        prepare=lambda folder: (folder / "link").symlink_to("nowhere"),
    ),
    Bad(
        "output holds a run",
        ("train", "output_dir=out"),
        ("already holds a run", "output_dir=out-2", "overwrite=true"),
        {"out/config.yaml": "seed: 0\n"},
    ),
    Bad(
        "output holds something else",
        ("train", "output_dir=out", "overwrite=true"),
        ("not of a run", "never overwritten"),
        {"out/thesis.tex": "x"},
    ),
]
RESUME = [
    train("resume without a run", _RESUME, "resume = 'latest'", "no checkpoint in out/checkpoints", "leave resume out"),
    Bad(
        "resume a run without checkpoints",
        ("train", "output_dir=out", "resume=000020"),
        ("resume = '000020'", "no checkpoint in out/checkpoints"),
        {"out/config.yaml": "seed: 0\n", "out/checkpoints/.000020.writing/run.json": "{"},
    ),
    stored(
        "resume from what is no checkpoint",
        sound,
        "resume = 'out'",
        "is no checkpoint of the run in 'out', which has 000020",
        "use resume=latest",
        settings=("output_dir=out", "resume=out"),
    ),
    Bad(
        "checkpoint of another run",
        ("train", "output_dir=out", "resume=other/checkpoints/000030"),
        ("is no checkpoint of the run in 'out'", "the output_dir that the checkpoint lies in"),
        prepare=two_runs,
    ),
    Bad(
        "checkpoint of another program",
        ("train", *_RESUME),
        ("out/checkpoints/000020: manifest.json is missing", "no checkpoint is sound", "overwrite=true"),
        prepare=foreign,
    ),
    stored("manifest that is no JSON", rewritten("manifest.json", "{", "["), "manifest.json cannot be read"),
    stored(
        "manifest of another format",
        rewritten("manifest.json", '"format": 1', '"format": 9'),
        "says format 9, but this version reads format 1",
    ),
    stored("checkpoint under another number", renumbered, "000040: manifest.json is of rollout 20"),
    stored("file cut off", lambda at: os.truncate(at / "weights.safetensors", 3), "has 3 bytes instead of 7"),
    stored("file missing", lambda at: (at / "weights.safetensors").unlink(), "weights.safetensors is missing"),
    stored("file changed", rewritten("weights.safetensors", "weights", "weighty"), "another SHA-256 than the manifest"),
    stored(
        "named checkpoint that is damaged",
        lambda at: (at / "run.json").unlink(),
        "000020: run.json is missing",
        "use resume=latest, which skips damaged checkpoints",
        settings=("output_dir=out", "resume=000020"),
    ),
    Bad(
        "checkpoint of another version",
        ("train", *_RESUME),
        ("run.json was written by another version", "overwrite=true"),
        prepare=lambda folder: store_run(folder / "out", without="resumed_at"),
    ),
    stored(
        "rows lost", lambda at: os.truncate(at.parents[1] / "metrics.jsonl", 5), "metrics.jsonl of the run has 5 bytes"
    ),
    stored(
        "configuration changed",
        sound,
        "the run was started with another configuration",
        "seed: 0 then, 5 now",
        "use resume_with_changes=true",
        settings=(*_RESUME, "seed=5"),
    ),
    stored(
        "fewer rollouts than there were",
        sound,
        "training.rollouts = 3",
        "use training.rollouts=20 or more",
        settings=(*_RESUME, "training.rollouts=3"),
    ),
]
CASES = [*OUTPUT, *RESUME]
CONTROLS = [
    Bad(
        "sound checkpoint",
        ("config", "validate", *_RESUME),
        (),
        prepare=lambda folder: store_run(folder / "out"),
    )
]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    return meet([*CASES, *CONTROLS], tmp_path_factory.mktemp("output"))


@pytest.mark.parametrize("bad", CASES, ids=lambda bad: bad.name)
def test_output_is_refused(bad: Bad, outcomes: dict[str, Outcome]):
    assert_refused(bad, outcomes[bad.name])


def test_sound_checkpoint_passes(outcomes: dict[str, Outcome]):
    assert (outcomes["sound checkpoint"].code, outcomes["sound checkpoint"].stderr) == (0, "")


@pytest.mark.parametrize("bad", named(CASES, "output holds a run", "file cut off"), ids=lambda bad: bad.name)
def test_output_is_refused_by_a_process_of_its_own(bad: Bad, tmp_path: Path):
    assert_refused(bad, meet_alone(bad, tmp_path))
