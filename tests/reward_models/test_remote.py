"""The remote reward: what it sends, what it takes for an answer, and what it says where there is none."""

from __future__ import annotations

import re
import socket
import threading
import time

import pytest
import torch

from difalign.core.errors import ConfigError
from difalign.core.protocols import RewardModel, SubmittedReward
from difalign.core.types import RewardOutput
from difalign.reward_models.remote import RemoteReward, ScorerChanged
from difalign.reward_models.score_messages import ScoreReply, ScoreRequest
from difalign.reward_models.tensor_message import TensorMessage
from tests.reward_models.answering import HASH, Answer, answering, reply, scores

PROMPTS = ["a red circle", "two blue squares", "a green cross"]


def pictures(number: int = 3) -> torch.Tensor:
    return torch.rand(number, 3, 6, 4, generator=torch.Generator().manual_seed(0))


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def quick(url: str, **options) -> RemoteReward:
    """A client that does not pause."""
    return RemoteReward(url, **{"pause": 0.0, "retries": 2, **options})


def by_prompt(message: TensorMessage) -> tuple[int, bytes]:
    """The length of each prompt, after a time that grows with the first of them."""
    request = ScoreRequest.from_bytes(message.to_bytes())
    time.sleep(0.02 * (5 - len(request.prompts[0])))
    values = torch.tensor([float(len(prompt)) for prompt in request.prompts])
    return 200, ScoreReply(RewardOutput(values), request.request_id, HASH).to_bytes()


# --- what is sent ------------------------------------------------------------------------------------------------


def test_pictures_and_prompts_arrive_and_scores_come_back():
    with answering(scores(0.5, -1.0, 2.0, strict=torch.tensor([1.0, 0.0, 0.0]))) as server:
        reward = quick(server.url)
        assert isinstance(reward, RewardModel)
        assert isinstance(reward, SubmittedReward)
        output = reward.score(pictures(), PROMPTS, metadata=[{"n": i} for i in range(3)], sigma=0.25)
        (asked,) = server.asked
    assert asked.header["prompts"] == PROMPTS
    assert asked.header["metadata"] == [{"n": 0}, {"n": 1}, {"n": 2}]
    assert asked.header["sigma"] == 0.25
    assert torch.equal(asked.tensors["media"], (pictures() * 255).round().byte())
    assert output.scores.tolist() == [0.5, -1.0, 2.0]
    assert output.components["strict"].tolist() == [1.0, 0.0, 0.0]
    assert output.valid is not None
    assert output.valid.all()


def test_batches_go_out_together_and_are_joined_in_order():
    prompts = ["a", "bb", "ccc", "dddd"]
    together = threading.Barrier(4, timeout=30)

    def when_all_are_here(message: TensorMessage) -> tuple[int, bytes]:
        together.wait()
        return by_prompt(message)  # the first part is answered last

    with answering(when_all_are_here) as server:
        reward = quick(server.url, micro_batch=1, parallel=4)
        assert reward.score(pictures(4), prompts).scores.tolist() == [1.0, 2.0, 3.0, 4.0]
        assert len(server.asked) == 4


def test_scoring_goes_on_while_the_caller_does_something_else():
    gate = threading.Event()

    def late(message: TensorMessage) -> tuple[int, bytes]:
        assert gate.wait(10)
        return by_prompt(message)

    with answering(late) as server:
        reward = quick(server.url, micro_batch=2)
        media = pictures()
        expected = (media * 255).round().byte()
        future = reward.submit(media, ["a", "bb", "ccc"])
        media.zero_()  # the next pictures may take the memory
        assert not future.done()
        gate.set()
        assert future.result(10).scores.tolist() == [1.0, 2.0, 3.0]
        sent = sorted((asked.tensors["media"] for asked in server.asked), key=len, reverse=True)
        assert torch.equal(torch.cat(sent), expected)


def test_clips_are_sent_as_they_are():
    with answering(scores(1.0)) as server:
        quick(server.url).score(torch.rand(1, 5, 3, 6, 4), PROMPTS[:1])
        assert server.asked[0].tensors["media"].shape == (1, 5, 3, 6, 4)


def test_another_encoding_is_sent_where_it_is_asked_for_and_logged(caplog: pytest.LogCaptureFixture):
    with answering(scores(1.0)) as server:
        quick(server.url, encoding="png").score(pictures(1), PROMPTS[:1])
        body = server.asked[0].to_bytes()
    assert torch.equal(ScoreRequest.from_bytes(body, accepted=("png",)).media, (pictures(1) * 255).round().byte())
    assert "sent as png" in caplog.text


def test_the_token_of_the_environment_is_sent(monkeypatch: pytest.MonkeyPatch):
    with answering(scores(1.0)) as server:
        monkeypatch.setenv("SCORER_TOKEN", "abc")
        reward = quick(server.url, token_variable="SCORER_TOKEN")
        reward.score(pictures(1), PROMPTS[:1])
        monkeypatch.delenv("SCORER_TOKEN")
        reward.score(pictures(1), PROMPTS[:1])
        assert [headers.get("Authorization") for headers in server.headers] == ["Bearer abc", None]


def test_this_machine_is_asked_without_a_proxy(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{closed_port()}")
    monkeypatch.delenv("no_proxy", raising=False)
    with answering(scores(1.0)) as server:
        assert quick(server.url).score(pictures(1), PROMPTS[:1]).scores.tolist() == [1.0]


# --- what is taken for an answer ---------------------------------------------------------------------------------


def raw(header: dict | None = None, **tensors: torch.Tensor) -> Answer:
    def answer(message: TensorMessage) -> tuple[int, bytes]:
        told = {"request_id": message.header["request_id"], "card_hash": HASH, **(header or {})}
        return 200, TensorMessage(tensors, told).to_bytes()

    return answer


YES = torch.ones(3, dtype=torch.bool)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (scores(1.0, 2.0), r"'scores' of type torch.float32 and shape \(2,\), not float32 \[3\]"),
        (raw(scores=torch.zeros(3, 1), valid=YES), r"shape \(3, 1\), not float32 \[3\]"),
        (raw(scores=torch.zeros(3).double(), valid=YES), r"type torch.float64"),
        (raw(scores=torch.zeros(3), valid=torch.ones(3)), r"'valid' of type torch.float32"),
        (raw(scores=torch.zeros(3), valid=YES, part=torch.zeros(2)), r"'part' of type"),
        (raw(values=torch.zeros(3)), r"has no tensor 'scores', only \['values'\]"),
        (raw({"errors": {"7": "no such row"}}, scores=torch.zeros(3), valid=YES), r"has errors"),
        (raw({"request_id": "other"}, scores=torch.zeros(3), valid=YES), r"is to another request, 'other'"),
        ((200, b"fine"), r"is not safetensors"),
        ((500, b'{"error": "the server failed"}'), r"answers 500 .*: the server failed; asked 3 times"),
        ((503, b"loading"), r"answers 503 .*: loading; asked 3 times"),
    ],
    ids=["length", "shape", "float64", "valid", "component", "no scores", "errors", "id", "text", "failure", "busy"],
)
def test_other_answers_are_failures_and_never_scores(answer: Answer, message: str):
    with answering(answer) as server:
        output = quick(server.url).score(pictures(), PROMPTS)
        lies = server.queue[0] == answer and not (isinstance(answer, tuple) and answer[0] >= 500)
        assert len(server.asked) == (1 if lies else 3)  # a lie would come again
    assert output.valid is not None
    assert not output.valid.any()
    assert output.scores.isnan().all()
    assert re.search(message, output.errors[1]), output.errors[1]
    assert server.url in output.errors[0]


@pytest.mark.parametrize(
    ("values", "message"),
    [([1.0, float("nan"), 2.0], "gave nan"), ([1.0, float("-inf"), 2.0], "gave -inf")],
    ids=["NaN", "infinity"],
)
def test_a_score_that_is_no_number_is_no_score_of_that_row(values: list[float], message: str):
    with answering(raw(scores=torch.tensor(values), valid=YES)) as server:
        output = quick(server.url).score(pictures(), PROMPTS)
    assert output.valid is not None
    assert output.valid.tolist() == [True, False, True]
    assert output.scores.isnan().tolist() == [False, True, False]
    assert message in output.errors[1]


def test_what_the_server_could_not_score_keeps_its_row_and_reason():
    bad = RewardOutput(
        torch.tensor([1.0, float("nan")]), {}, torch.tensor([True, False]), {1: "the scorer failed: out of memory"}
    )
    with answering(reply(bad), scores(3.0, 4.0)) as server:
        output = quick(server.url, micro_batch=2, parallel=1).score(pictures(4), [*PROMPTS, "x"])
    assert output.errors == {1: "the scorer failed: out of memory"}
    assert output.scores[[0, 2, 3]].tolist() == [1.0, 3.0, 4.0]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((401, b'{"error": "the token is missing"}'), r"refuses: 401 .*: the token is missing"),
        ((400, b'{"error": "the request has no\x1b[31m media"}'), r"refuses: 400"),
        ((413, b"too long"), r"refuses: 413 .*: too long"),
        ((302, b""), r"refuses: 302"),
    ],
    ids=["token", "request", "size", "redirect"],
)
def test_a_refusal_is_an_error_at_once(answer: Answer, message: str):
    with answering(answer) as server:
        with pytest.raises(ValueError, match=message) as caught:
            quick(server.url).score(pictures(), PROMPTS)
        assert "\x1b" not in str(caught.value)
        assert len(server.asked) == 1


def test_a_packed_answer_is_not_unpacked():
    with answering(scores(1.0)) as server:
        reward = quick(server.url)
        server.extra["Content-Encoding"] = "gzip"
        assert "is packed" in reward.score(pictures(1), PROMPTS[:1]).errors[0]


def test_components_must_be_the_same_in_every_batch():
    with (
        answering(scores(1.0, part=torch.zeros(1)), scores(2.0, other=torch.zeros(1))) as server,
        pytest.raises(ValueError, match="name other components from one request to the next"),
    ):
        quick(server.url, micro_batch=1, parallel=1).score(pictures(2), PROMPTS[:2])


def test_a_changed_scorer_is_noticed_with_both_hashes():
    with answering(scores(1.0), scores(1.0, card_hash="b" * 64)) as server:
        reward = quick(server.url)
        assert reward.card_hash == HASH
        reward.score(pictures(1), PROMPTS[:1])
        with pytest.raises(ScorerChanged, match=f"card hash {'b' * 64} where {HASH} was agreed on"):
            reward.score(pictures(1), PROMPTS[:1])
        with pytest.raises(ScorerChanged, match=f"{HASH} where {'c' * 64}"):
            quick(server.url, card_hash="c" * 64)


def test_servers_of_two_scorers_are_not_mixed():
    with (
        answering(scores(1.0)) as one,
        answering(scores(1.0), card_hash="b" * 64) as other,
        pytest.raises(ScorerChanged, match=f"{other.url} scores with card hash {'b' * 64}"),
    ):
        quick(f"{one.url}, {other.url}")


# --- servers that come and go ------------------------------------------------------------------------------------


def test_a_busy_server_is_asked_again():
    with answering((503, b"loading"), (429, b"loading"), scores(1.0)) as server:
        assert quick(server.url).score(pictures(1), PROMPTS[:1]).scores.tolist() == [1.0]
        assert len(server.asked) == 3


def test_a_server_is_not_asked_before_it_wants_to():
    with answering((503, b"loading"), scores(1.0)) as server:
        reward = quick(server.url)
        server.extra["Retry-After"] = "1"
        begin = time.monotonic()
        reward.score(pictures(1), PROMPTS[:1])
        assert time.monotonic() - begin >= 1.0


def test_work_is_shared_and_goes_on_with_the_servers_that_are_left():
    with answering(by_prompt) as one:
        with answering(by_prompt) as other:
            reward = quick(f"{one.url},{other.url}", micro_batch=1)
            reward.score(pictures(4), ["a", "bb", "ccc", "dddd"])
            assert min(len(one.asked), len(other.asked)) >= 1
        one.asked.clear()
        output = reward.score(pictures(4), ["a", "bb", "ccc", "dddd"])
        assert output.scores.tolist() == [1.0, 2.0, 3.0, 4.0]
        assert not output.errors
        assert len(one.asked) == 4


def test_a_lying_server_is_gone_around():
    with answering((200, b"fine")) as liar, answering(by_prompt) as honest:
        reward = quick(f"{liar.url},{honest.url}", micro_batch=1, patience=2)
        for _ in range(3):
            assert not reward.score(pictures(2), ["a", "bb"]).errors
        assert len(liar.asked) <= 3  # then it rests


def test_a_server_that_is_killed_and_comes_back_is_found_again():
    with answering(scores(1.0)) as server:
        reward = RemoteReward(server.url, pause=0.02, retries=100, patience=1000)
        port = int(server.url.rpartition(":")[2])
    future = reward.submit(pictures(1), PROMPTS[:1])
    time.sleep(0.2)
    assert not future.done()
    with answering(scores(2.0), port=port):
        assert future.result(10).scores.tolist() == [2.0]


def test_a_server_that_stays_away_leaves_rows_without_scores_and_says_so():
    with answering(scores(1.0)) as server:
        reward = quick(server.url)
    output = reward.score(pictures(2), PROMPTS[:2])
    assert output.scores.isnan().all()
    assert "does not answer" in output.errors[1]
    assert "asked 3 times" in output.errors[1]


def test_a_server_that_is_down_at_the_start_is_an_error_with_address_and_remedy():
    url = f"http://127.0.0.1:{closed_port()}"
    with pytest.raises(ConfigError, match=r"asked 3 times: start it, or give its address as options\.url") as caught:
        quick(url)
    assert f"no reward server answers: {url}" in str(caught.value)


def test_one_of_several_may_be_down_at_the_start(caplog: pytest.LogCaptureFixture):
    down = f"http://127.0.0.1:{closed_port()}"
    with answering(scores(1.0)) as server:
        assert quick(f"{down} {server.url}").score(pictures(1), PROMPTS[:1]).scores.tolist() == [1.0]
    assert down in caplog.text


def test_a_slow_server_is_waited_for_no_longer_than_the_deadline():
    with answering(scores(1.0)) as server:
        reward = quick(server.url, deadline=0.4, timeout=5.0, retries=0)
        server.trickle = 0.01  # never silent for long, and never done
        begin = time.monotonic()
        assert "has not ended its answer in time" in reward.score(pictures(1), PROMPTS[:1]).errors[0]
        assert time.monotonic() - begin < 2


def test_a_server_that_keeps_silent_is_not_waited_for():
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        begin = time.monotonic()
        with pytest.raises(ConfigError, match=r"timed out after 0\.1 s"):
            quick(f"http://127.0.0.1:{mute.getsockname()[1]}", timeout=0.1, retries=1)
        assert time.monotonic() - begin < 5


# --- bad use -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "127.0.0.1:18085"}, "must be like http://"),
        ({"url": "file:///etc/hosts"}, "must be like http://"),
        ({"url": "http:///score"}, "must be like http://"),
        ({"url": " , "}, "must be one address, or several"),
        ({"url": "http://a http://a/"}, "must be one address, or several"),
        ({"micro_batch": 0}, "micro_batch = 0: must be at least 1"),
        ({"parallel": 0}, "parallel = 0: must be at least 1"),
        ({"retries": -1}, "retries = -1: must be at least 0"),
        ({"timeout": 0.0}, r"timeout = 0.0: must be at least 0.001"),
        ({"encoding": "webp"}, "encoding = 'webp': must be one of raw, png, jpeg"),
    ],
    ids=str,
)
def test_bad_options_are_refused(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        RemoteReward(**{"url": "http://127.0.0.1:18085", **options})


@pytest.mark.parametrize(
    ("media", "prompts", "message"),
    [
        (pictures(2), PROMPTS, "2 pictures but 3 prompts"),
        (pictures(0), [], "none of them 0"),
        (torch.rand(1, 3, 0, 4), ["a"], "none of them 0"),
        (torch.rand(1, 1, 4, 4), ["a"], r"shape \[1, 1, 4, 4\]"),
        (torch.rand(1, 4, 4, 4), ["a"], r"shape \[1, 4, 4, 4\]"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.uint8), ["a"], "media of type torch.uint8"),
        (pictures(1).requires_grad_(), ["a"], "has no gradient"),
    ],
    ids=["count", "empty", "no height", "grey", "alpha", "uint8", "gradient"],
)
def test_bad_calls_are_refused_before_anything_is_sent(media: torch.Tensor, prompts: list[str], message: str):
    with answering(scores(1.0)) as server:
        with pytest.raises(ValueError, match=message):
            quick(server.url).score(media, prompts)
        with pytest.raises(ValueError, match="1 prompts but 2 metadata"):
            quick(server.url).score(pictures(1), ["a"], metadata=[{}, {}])
        assert not server.asked


def test_a_picture_that_holds_nan_has_no_score():
    media = pictures()
    media[1, 0, 0, 0] = torch.nan
    with answering(scores(1.0, 2.0, 3.0, part=torch.zeros(3))) as server:
        output = quick(server.url).score(media, PROMPTS)
    assert output.scores.isnan().tolist() == [False, True, False]
    assert "no finite numbers" in output.errors[1]
    assert output.valid is not None
    assert output.valid.tolist() == [True, False, True]
