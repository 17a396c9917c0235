"""A number that is not finite on one process alone: both skip the update, and both name it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.house.repository import ROOT

pytestmark = pytest.mark.multiproc

WORKER = """
import json, os, sys
from pathlib import Path
import torch
from tests.train import faulty
from tests.train.toy_run import quiet, toy_config, toy_trainer, weights
torch.set_num_threads(1)
rank = int(os.environ["RANK"])
kind = getattr(faulty, sys.argv[2])
# 3 of 5 prompts x 12 samples x 5 steps in micro-batches of 64 are three forwards on the first process, two on the other
config = toy_config(sampling={"prompts_per_update": 5}, training={"ema": {"enabled": True, "every": 1}})
trainer, pipeline = toy_trainer(config, network=kind({3} if rank == 1 else ()))
states = []
for index in range(4):
    trainer.run(index, quiet)
    states.append([*weights(pipeline).tolist(), *(float(v) for v in trainer.average.values), trainer.average.steps])
lines = [alarm.line for alarm in trainer.alarms.given]
Path(sys.argv[1], f"{rank}.json").write_text(json.dumps({"states": states, "lines": lines}))
trainer._runtime.close()
"""


@pytest.mark.parametrize("kind", ["LossBreaks", "GradientBreaks"])
def test_both_processes_skip_what_one_cannot_do(tmp_path: Path, kind: str) -> None:
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*launch, str(script), str(tmp_path), kind],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (_read(tmp_path / f"{rank}.json") for rank in (0, 1))
    assert first == second
    before, skipped, *later = first["states"]
    assert skipped == before
    assert len({tuple(state) for state in (before, *later)}) == 3  # the others were taken
    (line,) = first["lines"]
    assert line.startswith("skipped_update at rollout 1, update 1: ")
    assert "is not finite on process 1 at steps" in line


def _read(path: Path) -> Any:
    return json.loads(path.read_text())
