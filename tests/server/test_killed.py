"""A training run whose reward server is killed and started again in the middle of an epoch.

It ends with the metrics and the weights of a run that nobody disturbed, to the last bit.
"""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import httpx

from difalign.build.cards import load_reward_card
from difalign.build.factory import build_reward
from difalign.core.config_rewards import RewardConfig
from tests.server.processes import end, in_background, start
from tests.server.slow import write_card
from tests.train.launched import free_port
from tests.train.small_runs import WEIGHTS, rows_without_clocks, run_toy, toy_run_config

BEFORE, ROLLOUT = 10, 8  # pictures: of the scores before training, and of each of three rollouts
KILLED_AT = BEFORE + ROLLOUT + ROLLOUT // 2  # in the middle of the second rollout
SERVER = ("--option", "pause=0.02", "--window-ms", "0")


class Assassin(threading.Thread):
    """Kills a server once it has scored ``after`` pictures, and starts it again."""

    def __init__(self, process: subprocess.Popen[str], url: str, arguments: tuple[str, ...], *, after: int) -> None:
        super().__init__()
        self.process, self.url, self.arguments, self.after = process, url, arguments, after
        self.scored_before = self.exit_code = 0

    def run(self) -> None:
        while self.scored_before < self.after:
            time.sleep(0.01)
            self.scored_before = httpx.get(f"{self.url}/v1/metrics", trust_env=False).json()["pictures"]
        self.process.send_signal(signal.SIGKILL)
        self.exit_code = self.process.wait()
        end(self.process)
        time.sleep(0.3)  # nobody listens
        self.process = start(*self.arguments)


def run(folder: Path, url: str) -> dict[str, Any]:
    """A run on two rewards, one of them at ``url``."""
    configs = {
        "compressibility": RewardConfig(weight=0.5),
        "remote": RewardConfig(
            weight=2.0,
            options={"url": url, "micro_batch": 1, "parallel": 1, "pause": 0.05, "retries": 1000, "patience": 1000},
        ),
    }
    reward = build_reward({name: load_reward_card(name) for name in configs}, configs, device="cpu")
    return run_toy(toy_run_config(folder), reward=reward)


def test_a_run_whose_server_is_killed_and_restarted_ends_as_the_undisturbed_one(tmp_path: Path):
    arguments = (str(write_card(tmp_path)), "--port", str(free_port()), *SERVER)
    process = start(*arguments)
    assassin = None
    try:
        assert process.stdout is not None
        url = process.stdout.readline().split()[1]
        run(tmp_path / "calm", url)
        scored = httpx.get(f"{url}/v1/metrics", trust_env=False).json()["pictures"]
        assassin = Assassin(process, url, arguments, after=scored + KILLED_AT)
        with in_background(assassin):
            run(tmp_path / "disturbed", url)
        again = httpx.get(f"{url}/v1/metrics", trust_env=False).json()["pictures"]
    finally:
        end(process if assassin is None else assassin.process)
    assert assassin.exit_code == -signal.SIGKILL
    assert KILLED_AT <= assassin.scored_before - scored < BEFORE + 2 * ROLLOUT
    assert 0 < again <= 2 * scored - assassin.scored_before + 1  # the rest, and at most the one that was under way
    rows = rows_without_clocks(tmp_path / "disturbed")
    assert rows == rows_without_clocks(tmp_path / "calm")
    assert rows
    assert any("remote" in key for key in rows[0])
    assert (tmp_path / "disturbed" / WEIGHTS).read_bytes() == (tmp_path / "calm" / WEIGHTS).read_bytes()
