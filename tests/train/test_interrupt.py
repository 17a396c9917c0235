"""The first signal is noted, the second ends the process; outside, all is as it was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from difalign.train.interrupt import SIGNALS, Interrupted, SignalWatch
from tests.house.repository import ROOT

# Sends itself signals, and says what it lives to see. Nothing but the watch is imported: no test waits for torch.
PROGRAM = """
import os, signal, sys, time
from difalign.train.interrupt import SignalWatch

numbers, grace = [int(word) for word in sys.argv[1].split(",")], float(sys.argv[2])
with SignalWatch(lambda text: print(text, flush=True), grace=grace) as watch:
    for number in numbers:
        os.kill(os.getpid(), number)
        time.sleep(0.05)
    print("alive", watch.received, "torch" in sys.modules, flush=True)
"""


def run(*numbers: int, grace: float = 0.0) -> tuple[int, str]:
    command = [sys.executable, "-c", PROGRAM, ",".join(str(int(number)) for number in numbers), str(grace)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    return result.returncode, result.stdout


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_first_signal_is_noted(number: signal.Signals):
    code, said = run(number)
    assert code == 0
    assert said.splitlines() == [
        f"{number.name}: stopping after this rollout, with a checkpoint; once more to stop at once",
        f"alive {int(number)} False",
    ]


@pytest.mark.parametrize("second", SIGNALS, ids=lambda number: number.name)
def test_second_signal_ends_the_process_at_once(second: signal.Signals):
    code, said = run(signal.SIGINT, second)
    assert code == -second
    assert "alive" not in said


def test_signals_that_a_launcher_repeats_count_once():
    code, said = run(signal.SIGINT, signal.SIGTERM, grace=30.0)
    assert code == 0
    assert said.count("stopping") == 1
    assert f"alive {int(signal.SIGINT)}" in said
    code, _ = run(signal.SIGINT, signal.SIGTERM, grace=0.01)
    assert code == -signal.SIGTERM


def test_handlers_are_given_back():
    before = [signal.getsignal(number) for number in SIGNALS]
    for number in SIGNALS:
        said: list[str] = []
        with SignalWatch(said.append) as watch:
            assert watch.received == 0
            os.kill(os.getpid(), number)
            deadline = time.monotonic() + 10
            while not watch.received and time.monotonic() < deadline:
                time.sleep(0.001)
            assert watch.received == number
            assert len(said) == 1
        assert [signal.getsignal(each) for each in SIGNALS] == before


def test_other_threads_watch_nothing():
    """Python handles signals in the main thread only; a run elsewhere goes without."""
    before = [signal.getsignal(number) for number in SIGNALS]
    found: list[object] = []

    def body() -> None:
        with SignalWatch(lambda text: None) as watch:
            found.extend([watch.received, *(signal.getsignal(number) for number in SIGNALS)])

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert found == [0, *before]


def test_exit_code_is_that_of_a_shell():
    assert Interrupted("stopped", signal.SIGINT).exit_code == 130
    assert Interrupted("stopped", signal.SIGTERM).exit_code == 143
