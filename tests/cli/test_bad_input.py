"""What every refusal has in common: the same words from every command, all problems at once, one message a launch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from difalign.cli import app, train_flow_grpo
from tests.cli.bad_input import LAUNCHER_VARIABLES, train
from tests.folders import file_contents
from tests.house.repository import ROOT

SAME_WORDS = [
    train("misspelt key", ("sampling.stepz=4",)),
    train("unknown plan", ("sampling.plan.kind=windw",)),
    train("malformed YAML", ("--config", "my.yaml"), my_yaml="sampling:\n  steps: [1\nseed: 0\n"),
    train("empty prompt file", ("prompts.train=p.txt",), p_txt="\n# nothing\n"),
    train("unknown pipeline", ("pipeline=tiny-sd4",)),
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("difalign.build.run.run_flow_grpo", lambda inputs: pytest.fail("bad input was trained on"))
    return tmp_path


@pytest.mark.parametrize("bad", SAME_WORDS, ids=lambda bad: bad.name)
def test_all_commands_say_the_same(
    bad, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    before = file_contents(bad.fill(folder))
    said = []
    for main, command in ((train_flow_grpo.main, []), (app.main, ["train"]), (app.main, ["config", "validate"])):
        monkeypatch.setattr(sys, "argv", ["difalign", *command, *bad.arguments[1:]])
        with pytest.raises(SystemExit) as stop:
            main()
        assert stop.value.code == 2
        said.append(capsys.readouterr().err)
    assert said[0].startswith("error: ")
    assert len(set(said)) == 1
    assert file_contents(folder) == before


def test_all_problems_are_named_at_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys, "argv", ["train_flow_grpo.py", "sampling.steps=0", "seed=-1", "nam=x"])
    with pytest.raises(SystemExit):
        train_flow_grpo.main()
    error = capsys.readouterr().err
    assert "3 problems" in error
    assert all(key in error for key in ("sampling.steps = 0", "seed = -1", "nam: unknown key; did you mean name?"))


def test_unwritable_output(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    (folder / "locked").mkdir()
    access = os.access
    # Permissions do not bind root, so the answer of the system is replaced.
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "locked" and access(path, mode))
    monkeypatch.setattr(sys, "argv", ["train_flow_grpo.py", "output_dir=locked/run"])
    with pytest.raises(SystemExit) as stop:
        train_flow_grpo.main()
    assert stop.value.code == 2
    assert "locked is not writable" in capsys.readouterr().err


@pytest.mark.slow
def test_quiet_launcher_adds_nothing_to_the_message(tmp_path: Path):
    """Without ``--quiet`` accelerate prints its own traceback below; its exit code is 1 either way."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", "--cpu", "--num_processes", "1"]
    own = {name: value for name, value in os.environ.items() if name not in LAUNCHER_VARIABLES}
    done = subprocess.run(
        [*launcher, str(ROOT / "train_flow_grpo.py"), "sampling.stepz=4"],
        cwd=tmp_path,
        env={**own, "PYTHONPATH": str(ROOT), "HF_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 1
    assert "sampling.stepz: unknown key; did you mean sampling.steps?" in done.stderr
    assert "Traceback" not in done.stderr
