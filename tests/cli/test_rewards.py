"""``difalign rewards``: what is listed, shown, checked and verified, and with which exit code."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from difalign.build import reward_check
from difalign.cli.app import app

RUNNER = CliRunner()
CARD = "name: mine\nsummary: x\nlicence: MIT\ntarget: tests.build.flawed_rewards:{function}\n"


def call(*arguments: str | Path) -> Result:
    return RUNNER.invoke(app, ["rewards", *map(str, arguments)])


def mine(folder: Path, function: str, more: str = "") -> Path:
    (folder / "mine.yaml").write_text(CARD.format(function=function) + more)
    return folder / "mine.yaml"


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # the command sets it; a test leaves no trace


def test_list_says_what_a_choice_depends_on():
    lines = call("list").stdout.splitlines()
    assert lines[0].split() == ["name", "range", "gradient", "needs", "licence", "here"]
    row = next(line for line in lines if line.startswith("tiny-clip"))
    assert row.split() == ["tiny-clip", "-1", "to", "1", "yes", "Apache-2.0", "yes"]
    assert "needs weights" in next(line for line in lines if line.startswith("pickscore"))


def test_show_tells_all_of_a_card():
    text = call("show", "tiny-clip").stdout
    for fact in ("difalign.reward_models.clip:ClipReward", "options.scale", "Apache-2.0", "-1.0, 1.0"):
        assert fact in text
    missing = call("show", "verifer")
    assert missing.exit_code == 2
    assert "did you mean 'verifier'" in missing.stderr


def test_check_ends_well_when_all_that_can_run_is_right(tmp_path: Path):
    away = mine(tmp_path, "bright", "hub_id: nobody/nothing\n")
    result = call("check", "verifier", away)
    assert result.exit_code == 0, result.output
    assert "verifier: ok: 4 pictures, 0.04167 to 1, reads the prompt" in result.stdout
    assert "mine: not here: nobody/nothing" in result.stdout
    assert result.stdout.endswith("1 ok, 0 failed, 1 skipped\n")


def test_check_fails_when_one_fails(tmp_path: Path):
    result = call("check", mine(tmp_path, "relative"), "verifier")
    assert result.exit_code == 1
    assert "mine: FAILED" in result.stdout
    assert result.stdout.endswith("1 ok, 1 failed, 0 skipped\n")


def test_values_are_written_only_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(reward_check, "definition_roots", lambda: (tmp_path,))
    (tmp_path / "reward_models").mkdir()
    file = tmp_path / "reward_models" / reward_check.VALUES_FILE
    assert call("check", mine(tmp_path, "bright")).exit_code == 0
    assert not file.exists()
    assert call("check", mine(tmp_path, "bright"), "--write").exit_code == 0
    assert '"mine"' in file.read_text()


def test_verify_compares_hashes(tmp_path: Path):
    (tmp_path / "w.pt").write_bytes(b"x")
    wrong = call("verify", mine(tmp_path, "bright", f"path: .\nfile: w.pt\nsha256: {'0' * 64}\n"))
    assert wrong.exit_code == 1
    assert "PROBLEM" in wrong.stdout
    assert "fetch it again" in wrong.stdout
    right = call("verify", "tiny-clip", "verifier")
    assert right.exit_code == 0, right.output
    assert "verifier: has no weights" in right.stdout
