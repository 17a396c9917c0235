"""A run's folder with a sound checkpoint, written without training: what the checks before training read of one."""

from __future__ import annotations

import hashlib
import json
from functools import partial
from pathlib import Path

from difalign.build.preflight import prepare
from difalign.cli.settings import read_config
from difalign.report.log import FileMark, LogMark
from difalign.report.records import Evaluation, SampleRecord
from difalign.train.checkpoint import save_checkpoint
from difalign.train.resume import RUN_FILE, RunState

METRICS = b'{"rollout": 0, "update": 0}\n'


def store_run(folder: Path, *, rollouts: int = 20, without: str | None = None) -> Path:
    """Write the demo's run with one checkpoint, whose state lacks one key if asked, and return the checkpoint."""
    inputs = prepare(read_config(None, [f"output_dir={folder}"]), check_output=False)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("seed: 0\n")
    (folder / "metrics.jsonl").write_bytes(METRICS)
    state = RunState(
        config=inputs.config.model_dump(mode="json"),
        fingerprints=inputs.fingerprints,
        rollouts=rollouts,
        updates=rollouts,
        seconds=1.0,
        training_seconds=1.0,
        evaluation_forwards=0,
        base=Evaluation(0, "base", (SampleRecord("a red circle", "single", 0, {"total": 0.5}, 0),)),
        mark=LogMark(metrics=_mark(METRICS), alarms=_mark(b""), evaluations=()),
        resumed_at=(),
        best=None,
        guards={},
    )
    text = json.dumps({key: value for key, value in state.to_json().items() if key != without})
    files = {RUN_FILE: partial(_write, text), "weights.safetensors": partial(_write, "weights")}
    return save_checkpoint(folder, rollouts, files, keep=9).folder


def _mark(content: bytes) -> FileMark:
    return FileMark(len(content), hashlib.sha256(content).hexdigest())


def _write(text: str, path: Path) -> None:
    path.write_text(text)
