"""The remote reward: what it sends, what it takes for an answer, and what it says where there is none."""

from __future__ import annotations

import socket
import time

import pytest
import torch

from difalign.core.errors import ConfigError
from difalign.core.protocols import RewardModel
from difalign.reward_models.remote import RemoteReward
from difalign.reward_models.tensor_message import TensorMessage
from tests.reward_models.answering import answering, scores

PROMPTS = ["a red circle", "two blue squares", "a green cross"]


def pictures(number: int = 3) -> torch.Tensor:
    return torch.rand(number, 3, 6, 4, generator=torch.Generator().manual_seed(0))


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_pictures_and_prompts_arrive_and_scores_come_back():
    with answering(scores(0.5, -1.0, 2.0, strict=torch.tensor([1.0, 0.0, 0.0]))) as server:
        reward = RemoteReward(server.url)
        assert isinstance(reward, RewardModel)
        output = reward.score(pictures(), PROMPTS)
        (asked,) = server.asked
    assert asked.header["prompts"] == PROMPTS
    assert torch.equal(asked.tensors["media"], (pictures() * 255).round().byte())
    assert output.scores.tolist() == [0.5, -1.0, 2.0]
    assert output.components["strict"].tolist() == [1.0, 0.0, 0.0]


def test_batches_are_sent_one_by_one_and_joined_in_order():
    with answering(scores(1.0, 2.0), scores(3.0)) as server:
        output = RemoteReward(server.url, micro_batch=2).score(pictures(), PROMPTS)
        assert [message.header["prompts"] for message in server.asked] == [PROMPTS[:2], PROMPTS[2:]]
    assert output.scores.tolist() == [1.0, 2.0, 3.0]


def test_clips_are_sent_as_they_are():
    with answering(scores(1.0)) as server:
        RemoteReward(server.url).score(torch.rand(1, 5, 3, 6, 4), PROMPTS[:1])
        assert server.asked[0].tensors["media"].shape == (1, 5, 3, 6, 4)


def test_the_token_of_the_environment_is_sent(monkeypatch: pytest.MonkeyPatch):
    with answering(scores(1.0)) as server:
        monkeypatch.setenv("SCORER_TOKEN", "abc")
        reward = RemoteReward(server.url, token_variable="SCORER_TOKEN")
        reward.score(pictures(1), PROMPTS[:1])
        monkeypatch.delenv("SCORER_TOKEN")
        reward.score(pictures(1), PROMPTS[:1])
        assert [headers.get("Authorization") for headers in server.headers] == ["Bearer abc", None]


def test_this_machine_is_asked_without_a_proxy(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{closed_port()}")
    monkeypatch.delenv("no_proxy", raising=False)
    with answering(scores(1.0)) as server:
        assert RemoteReward(server.url).score(pictures(1), PROMPTS[:1]).scores.tolist() == [1.0]


def raw(**tensors: torch.Tensor) -> tuple[int, bytes]:
    return 200, TensorMessage(tensors, {}).to_bytes()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (scores(1.0, 2.0), r"'scores' of type torch.float32 and shape \(2,\), not float32 \[3\]"),
        (raw(scores=torch.zeros(3, 1)), r"shape \(3, 1\), not float32 \[3\]"),
        (raw(scores=torch.zeros(3).double()), r"type torch.float64"),
        (raw(scores=torch.zeros(3), part=torch.zeros(2)), r"'part' of type"),
        (scores(1.0, float("nan"), 2.0), r"'scores' = nan for 'two blue squares'"),
        (scores(1.0, 2.0, float("inf")), r"'scores' = inf for 'a green cross'"),
        (raw(values=torch.zeros(3)), r"has no tensor 'scores', only \['values'\]"),
        ((200, b"fine"), r"is not safetensors"),
        ((500, b"the scorer failed: out of memory"), r"refuses: 500 .*: the scorer failed: out of memory"),
        ((401, b"the token is missing"), r"refuses: 401 .*the token is missing"),
        ((302, b""), r"refuses: 302"),
    ],
    ids=[
        "length",
        "shape",
        "float64",
        "component",
        "NaN",
        "infinity",
        "no scores",
        "text",
        "failure",
        "token",
        "redirect",
    ],
)
def test_other_answers_are_errors_and_never_scores(answer: tuple[int, bytes], message: str):
    with answering(answer) as server:
        with pytest.raises(ValueError, match=message) as caught:
            RemoteReward(server.url, pause=0.0).score(pictures(), PROMPTS)
        assert server.url in str(caught.value)
        assert len(server.asked) == 1  # such an answer would come again


def test_components_must_be_the_same_in_every_batch():
    with (
        answering(scores(1.0, part=torch.zeros(1)), scores(2.0)) as server,
        pytest.raises(ValueError, match="names other scores from one request to the next"),
    ):
        RemoteReward(server.url, micro_batch=1).score(pictures(2), PROMPTS[:2])


def test_a_busy_server_is_asked_again():
    with answering((503, b"loading"), (503, b"loading"), scores(1.0)) as server:
        assert RemoteReward(server.url, pause=0.0).score(pictures(1), PROMPTS[:1]).scores.tolist() == [1.0]
        assert len(server.asked) == 3


def test_a_server_that_stays_busy_is_named():
    with (
        answering((503, b"loading")) as server,
        pytest.raises(ConfigError, match=r"no reward server answers at .*503.*loading; asked 3 times\): start it"),
    ):
        RemoteReward(server.url, retries=2, pause=0.0).score(pictures(1), PROMPTS[:1])


def test_a_server_that_is_down_is_known_at_once_with_address_and_remedy():
    url = f"http://127.0.0.1:{closed_port()}/score"
    with pytest.raises(ConfigError, match=r"start it, or give its address as options\.url") as caught:
        RemoteReward(url, retries=1, pause=0.0)
    assert f"no reward server answers at {url} (" in str(caught.value)
    assert "refused; asked 2 times" in str(caught.value)


def test_a_server_that_goes_away_is_named():
    with answering(scores(1.0)) as server:
        reward = RemoteReward(server.url, retries=1, pause=0.0)
    with pytest.raises(ConfigError, match="no reward server answers"):
        reward.score(pictures(1), PROMPTS[:1])


def test_a_server_that_keeps_silent_is_not_waited_for():
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        started = time.monotonic()
        with pytest.raises(ConfigError, match="timed out"):
            RemoteReward(f"http://127.0.0.1:{mute.getsockname()[1]}/score", timeout=0.1, retries=1, pause=0.0)
        assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "127.0.0.1:18085"}, "must be like http://"),
        ({"url": "file:///etc/hosts"}, "must be like http://"),
        ({"url": "http:///score"}, "must be like http://"),
        ({"micro_batch": 0}, "micro_batch = 0: must be at least 1"),
        ({"retries": -1}, "retries = -1: must be at least 0"),
        ({"timeout": 0.0}, r"timeout = 0.0: must be at least 0.001"),
    ],
    ids=str,
)
def test_bad_options_are_refused(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        RemoteReward(**{"url": "http://127.0.0.1:18085/score", **options})


def test_numbers_of_pictures_and_prompts_agree():
    with answering(scores(1.0)) as server, pytest.raises(ValueError, match="2 pictures but 3 prompts"):
        RemoteReward(server.url).score(pictures(2), PROMPTS)
