"""The sample server as a user starts it: its scores are those of the reward in process, down to a run's metrics."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from difalign.reward_models.compressibility import Compressibility
from difalign.reward_models.remote import RemoteReward
from tests.samples.recipe_modules import ROOT
from tests.train.small_runs import rows_without_clocks, run_toy, toy_run_config

PROMPTS = ["a red circle", "two blue squares", "a green cross"]


@contextmanager
def served(*arguments: str, folder: Path = ROOT, token: str = "") -> Iterator[str]:
    """The address of the sample server in a process of its own."""
    command = [sys.executable, str(ROOT / "samples" / "reward_server.py"), "--port", "0", *arguments]
    environment = {**os.environ, "DIFALIGN_REWARD_TOKEN": token, "PYTHONPATH": str(folder)}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        assert server.stdout is not None
        try:
            yield server.stdout.readline().split()[1]
        finally:
            server.terminate()


def pictures() -> torch.Tensor:
    return torch.rand(3, 3, 24, 16, generator=torch.Generator().manual_seed(0))


def test_scores_are_those_of_the_reward_in_process(tmp_path: Path):
    local = Compressibility()
    with served() as url:
        remote = RemoteReward(url, micro_batch=2)
        assert torch.equal(remote.score(pictures(), PROMPTS).scores, local.score(pictures(), PROMPTS).scores)
        reports = []
        for name, reward in (("remote", remote), ("local", local)):
            run_toy(toy_run_config(tmp_path / name, training={"rollouts": 1}), reward=reward)
            reports.append(rows_without_clocks(tmp_path / name))
    assert reports[0] == reports[1]


def test_a_scorer_of_ones_own_with_components(tmp_path: Path):
    (tmp_path / "mine.py").write_text(
        "def score(media, prompts):\n"
        "    assert media.dtype == 'uint8'\n"
        "    return {'scores': [len(prompt) for prompt in prompts], 'red': media[:, 0].mean(axis=(1, 2))}\n"
    )
    with served("--scorer", "mine:score", folder=tmp_path) as url:
        output = RemoteReward(url).score(pictures(), PROMPTS)
    assert output.scores.tolist() == [12.0, 16.0, 13.0]
    assert torch.allclose(output.components["red"], (pictures()[:, 0] * 255).round().mean(dim=(1, 2)))


def test_a_picture_on_which_the_scorer_fails_is_quoted_and_the_server_goes_on(tmp_path: Path):
    (tmp_path / "mine.py").write_text(
        "def score(media, prompts, metadata):\n    return [1.0 / row['divisor'] for row in metadata]\n"
    )
    with served("--scorer", "mine:score", folder=tmp_path) as url:
        reward = RemoteReward(url)
        output = reward.score(pictures(), PROMPTS, metadata=[{"divisor": n} for n in (2, 0, 4)])
        assert output.scores.isnan().tolist() == [False, True, False]
        assert "the scorer failed: ZeroDivisionError" in output.errors[1]
        assert reward.score(pictures(), PROMPTS, metadata=[{"divisor": 2}] * 3).scores.tolist() == [0.5] * 3


def test_another_scorer_has_another_hash(tmp_path: Path):
    hashes = []
    for text, identity in (("1.0", ""), ("2.0", ""), ("1.0", "checkpoint 7"), ("1.0", "")):
        (tmp_path / "mine.py").write_text(f"def score(media, prompts):\n    return [{text}] * len(prompts)\n")
        with served("--scorer", "mine:score", "--identity", identity, folder=tmp_path) as url:
            hashes.append(RemoteReward(url).card_hash)
    assert len(set(hashes)) == 3
    assert hashes[0] == hashes[3]


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (pickle.dumps({"media": [1]}), {}, 400),
        (b"", {}, 400),
        (b"\xff" * 40, {}, 400),
        (b"x", {"Content-Type": "application/x-pickle"}, 415),
        (b"x", {"Content-Encoding": "gzip"}, 415),
        (b"x", {"Content-Length": "999999999999"}, 413),
        (b"x", {"Host": "evil.example"}, 421),
    ],
    ids=["pickle", "empty", "header", "type", "packed", "long", "host"],
)
def test_what_is_no_request_is_refused_in_a_line(body: bytes, headers: dict[str, str], status: int):
    with served() as url:
        asked = urllib.request.Request(
            f"{url}/v1/score", data=body, headers={"Content-Type": "application/octet-stream", **headers}
        )
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(asked, timeout=10)
        with caught.value as refusal:
            assert refusal.code == status
            assert json.loads(refusal.read()).keys() == {"error"}


def test_others_are_listened_to_with_a_token_only():
    command = [sys.executable, str(ROOT / "samples" / "reward_server.py"), "--host", "0.0.0.0", "--port", "0"]
    environment = {**os.environ, "DIFALIGN_REWARD_TOKEN": ""}
    refused = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode == 2
    assert "set a token in DIFALIGN_REWARD_TOKEN" in refused.stderr


def test_only_who_has_the_token_is_served(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("DIFALIGN_REWARD_TOKEN", raising=False)
    with served(token="secret") as url:
        with pytest.raises(ValueError, match=r"401 .*the token is missing or another one"):
            RemoteReward(url).score(pictures(), PROMPTS)
        monkeypatch.setenv("DIFALIGN_REWARD_TOKEN", "secret")
        assert RemoteReward(url).score(pictures(), PROMPTS).scores.shape == (3,)
