"""``difalign distill`` as a user calls it, alone and as several processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner

from difalign.cli.app import app
from difalign.core.student_bank import read_bank
from tests.house.repository import ROOT
from tests.train.launched import cpu_environment, run, said

SMALL = [
    "prompts.scenes=4",
    "prompts.heldout_limit=2",
    "sampling.steps=4",
    "sampling.sigmas=[0.667, 0.334]",
    "sampling.samples_per_prompt=4",
    "sampling.shard_rows=6",
    "students.guided.batch_size=7",
    "evaluation.samples_per_prompt=4",
]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stage", "trian"], "--stage 'trian': did you mean 'train'? known: generate, label, train, evaluate"),
        (["--config", "tny"], "--config 'tny' is unknown; did you mean 'tiny'?"),
        (["sampling.sigma=[0.5]"], "did you mean sampling.sigmas?"),
        (["--scenes", "4"], "settings are written without dashes"),
        (["students.guided.epochs=0"], "students.guided.epochs = 0"),
    ],
)
def test_what_is_wrong_is_said_in_one_message(arguments: list[str], message: str):
    result = CliRunner().invoke(app, ["distill", *arguments])
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_settings_are_checked_before_torch_is_imported():
    code = (
        "import sys, difalign.cli.distill as d\n"
        "try: d.distill('tiny', ['train'], ['prompts.scenes=0'])\n"
        "except BaseException: pass\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=cpu_environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert "prompts.scenes = 0" in done.stderr


@pytest.mark.slow
@pytest.mark.multiproc
def test_two_processes_leave_what_one_leaves(tmp_path: Path):
    """The walks to the last bit, since a shard is one process's; the students to rounding."""
    for world in (1, 2):
        arguments = ["-m", "difalign.cli.distill", *SMALL, f"folder={tmp_path / str(world)}"]
        assert run(world, arguments, logs=tmp_path / f"logs{world}") == [0] * world, said(tmp_path / f"logs{world}")
    one, two = tmp_path / "1", tmp_path / "2"
    shards = sorted(path.relative_to(one) for path in one.glob("*/shard_*"))
    assert len(shards) == 2 * (3 + 2)
    for shard in shards:
        assert (one / shard).read_bytes() == (two / shard).read_bytes()
    banks = [read_bank(folder / "students" / "guided") for folder in (one, two)]
    for level, other in zip(*(bank.levels for bank in banks), strict=True):
        assert other.last_loss == pytest.approx(level.last_loss, rel=1e-3)
        weights, others = (
            load_file(one / "students/guided" / level.file),
            load_file(two / "students/guided" / other.file),
        )
        assert max(float((weights[name] - others[name]).abs().max()) for name in weights) < 1e-3
    assert (two / "evaluation.md").is_file()
    assert "evaluate:" not in (tmp_path / "logs2" / "1.log").read_text()
