"""Searches in processes of their own: killed and gone on with, and shared by two."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.build.small_search import ARGUMENTS, PROMPTS, found, order_of
from tests.house.repository import ROOT
from tests.train.launched import cpu_environment, run, said

_MODULE = ("-m", "difalign.cli.search")


def search(*more: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, *_MODULE, *ARGUMENTS, *more], cwd=ROOT, env=cpu_environment())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "out"
    assert search("--out", str(out)).wait(timeout=300) == 0
    return out


@pytest.mark.slow
def test_after_sigkill_no_finished_prompt_is_searched_again(whole: Path, tmp_path: Path):
    out = tmp_path / "out"
    process = search("--out", str(out), "--prompts-in-flight", "1")
    deadline = time.monotonic() + 300
    while not (out / "results.jsonl").is_file() and time.monotonic() < deadline:
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait(timeout=60) == -signal.SIGKILL
    done = order_of(out)
    assert 1 <= len(done) < len(PROMPTS)
    pictures = {name: (out / name / "winner.png").stat().st_mtime_ns for name in ("p00000",)}
    assert search("--out", str(out), "--prompts-in-flight", "1", "--resume").wait(timeout=300) == 0
    assert order_of(out) == list(PROMPTS)
    assert pictures == {name: (out / name / "winner.png").stat().st_mtime_ns for name in pictures}
    assert {prompt: entry[2].index for prompt, entry in found(out).items()} == {
        prompt: entry[2].index for prompt, entry in found(whole).items()
    }
    assert not (out / ".unfinished").exists()


@pytest.mark.slow
@pytest.mark.multiproc
def test_two_processes_find_what_one_does(whole: Path, tmp_path: Path):
    out = tmp_path / "out"
    codes = run(2, [*_MODULE, *ARGUMENTS, "--out", str(out)], logs=tmp_path / "logs")
    assert codes == [0, 0], said(tmp_path / "logs")
    assert order_of(out) == list(PROMPTS)
    there, here = found(whole), found(out)
    for prompt, (key, folder, winner, seeds, looks, nfe) in there.items():
        assert here[prompt][:2] == (key, folder)
        assert here[prompt][2].index == winner.index
        assert here[prompt][2].score == pytest.approx(winner.score, abs=1e-4)
        assert here[prompt][3] == seeds
        assert [kept for _, _, _, kept in here[prompt][4]] == [kept for _, _, _, kept in looks]
        assert here[prompt][5] == nfe
    assert not (out / ".unfinished").exists()
