"""Reward servers as a user starts them, in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from tests.house.repository import ROOT

SERVE = (sys.executable, "-c", "from difalign.cli.app import main; main()", "rewards", "serve")


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """That of a server with one thread, without a token."""
    ours = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "DIFALIGN_REWARD_TOKEN": ""}
    return {**os.environ, **ours, **(more or {})}


def start(*arguments: str, more: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """``difalign rewards serve ARGUMENTS``; its first line of output is the address."""
    return subprocess.Popen([*SERVE, *arguments], env=environment(more), stdout=subprocess.PIPE, text=True)


@contextmanager
def serving(*arguments: str, more: Mapping[str, str] | None = None) -> Iterator[str]:
    """The address of a server that runs inside."""
    process = start(*arguments, more=more)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().split()[1]
    finally:
        end(process)


def end(process: subprocess.Popen[str]) -> None:
    """SIGKILL, and wait."""
    process.kill()
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


@contextmanager
def in_background(work: threading.Thread) -> Iterator[None]:
    """Run a thread beside what is inside, and wait for its end."""
    work.start()
    try:
        yield
    finally:
        work.join()
