from __future__ import annotations

import getpass
import json
import platform
import subprocess
from pathlib import Path

import pytest
import torch

from difalign.report.environment import describe_environment, git_commit, package_versions, portable_argument


def test_it_says_on_what_the_run_took_place() -> None:
    environment = describe_environment(arguments=["train.py", "seed=1"], processes=2)
    assert environment["python"] == platform.python_version()
    assert environment["packages"]["torch"] == torch.__version__.split("+")[0] or environment["packages"]["torch"]
    assert environment["command"] == ["train.py", "seed=1"]
    assert environment["processes"] == 2
    assert environment["cpu_count"] >= 1


def test_no_host_user_or_folder_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(platform, "node", lambda: "secret-host")
    arguments = [f"{tmp_path}/bin/train.py", f"output_dir={tmp_path}/runs/x", "~/me.yaml", "C:\\Users\\me\\a.yaml"]
    text = json.dumps(describe_environment(arguments=arguments))
    for word in ("secret-host", str(tmp_path), str(Path.home()) + "/", "Users", f'"{getpass.getuser()}"'):
        assert word not in text


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("train.lr=1e-3", "train.lr=1e-3"),
        ("configs/a.yaml", "configs/a.yaml"),
        ("/srv/data/a.yaml", "a.yaml"),
        ("prompts=/srv/data/a.txt", "prompts=a.txt"),
        ("/srv/runs/", "runs"),
        ("--config=/srv/a=b.yaml", "--config=a=b.yaml"),
    ],
)
def test_arguments_lose_absolute_folders_only(word: str, expected: str) -> None:
    assert portable_argument(word) == expected


def test_paths_below_the_current_folder_become_relative(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert portable_argument(f"output_dir={tmp_path}/runs/x") == "output_dir=runs/x"


def test_missing_packages_are_left_out() -> None:
    assert list(package_versions(["numpy", "no-such-package-anywhere"])) == ["numpy"]


def test_commit_is_that_of_the_checkout_that_tracks_the_file(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        done = subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    git("init", "--quiet")
    tracked, stray = tmp_path / "tracked.py", tmp_path / "stray.py"
    tracked.write_text("a = 1\n")
    stray.write_text("b = 1\n")
    git("add", "tracked.py")
    assert git_commit(tracked) is None  # nothing committed yet
    git("commit", "--quiet", "--message", "first")
    assert git_commit(tracked) == git("rev-parse", "HEAD")
    assert git_commit(stray) is None
    tracked.write_text("a = 2\n")
    assert git_commit(tracked) == git("rev-parse", "HEAD") + "+changes"
