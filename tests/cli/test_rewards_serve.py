"""``difalign rewards serve`` as it is typed: the scores of the reward in process, and refusals before it loads."""

from __future__ import annotations

import signal
from pathlib import Path

import httpx
import pytest
import torch
from typer.testing import CliRunner

from difalign.api import load_reward
from difalign.cli.app import app
from difalign.reward_models.remote import RemoteReward, ScorerChanged
from tests.server.processes import end, serving, start
from tests.server.slow import Slow, write_card

PROMPTS = ["a red circle", "two blue squares", "a green cross"]


def pictures() -> torch.Tensor:
    media = torch.rand(3, 3, 24, 16, generator=torch.Generator().manual_seed(0))
    return (media * 255).round() / 255


def test_scores_are_those_of_the_reward_in_process():
    with serving("compressibility", "--port", "0", "--option", "quality=80") as url:
        options = {"url": url, "micro_batch": 2, "name": "jpeg"}
        remote = load_reward("remote", options=options)
        local = load_reward("compressibility", options={"quality": 80})
        assert torch.equal(remote.score(pictures(), PROMPTS).scores, local.score(pictures(), PROMPTS).scores)
        about = httpx.get(f"{url}/v1/info", trust_env=False).json()
    assert (about["name"], about["differentiable"]) == ("compressibility", False)


def test_the_token_guards_and_a_changed_card_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    card = str(write_card(tmp_path))
    monkeypatch.setenv("MINE", "secret")
    with serving(card, "--port", "0", "--token-variable", "MINE", more={"MINE": "secret"}) as url:
        with pytest.raises(ValueError, match="refuses: 401"):
            RemoteReward(url)
        reward = RemoteReward(url, token_variable="MINE", pause=0.05, retries=400, patience=1000)
        assert torch.allclose(reward.score(pictures(), PROMPTS).scores, Slow().score(pictures(), PROMPTS).scores)
    process = start(card, "--port", url.rpartition(":")[2], "--token-variable", "MINE", "--option", "gain=2.0")
    try:
        with pytest.raises(ScorerChanged, match=f"where {reward.card_hash} was agreed on"):
            reward.score(pictures(), PROMPTS)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) in (0, -signal.SIGTERM)
    finally:
        end(process)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no-such-reward"], "'no-such-reward' is unknown"),
        (["compressibility", "--host", "0.0.0.0"], "set a token in DIFALIGN_REWARD_TOKEN"),
        (["compressibility", "--option", "qualty=3"], "did you mean 'quality'"),
        (["compressibility", "--option", "quality"], "quality"),
        (["compressibility", "--accept", "webp"], "known encodings: raw, png, jpeg"),
        (["compressibility", "--host", "192.0.2.1"], "set a token"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_message_with_a_remedy(arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("DIFALIGN_REWARD_TOKEN", raising=False)
    result = CliRunner().invoke(app, ["rewards", "serve", *arguments, "--port", "0"])
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output


def test_an_address_that_is_taken_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DIFALIGN_REWARD_TOKEN", "x")
    result = CliRunner().invoke(app, ["rewards", "serve", "compressibility", "--host", "192.0.2.1", "--port", "0"])
    assert result.exit_code == 2
    assert "cannot listen at 192.0.2.1:0" in result.output
