"""Asking a server: what is asked again, what is not, and that it ends in time."""

from __future__ import annotations

import json
import time

import pytest

from difalign.reward_models.chat_endpoint import ChatEndpoint, NoAnswerError
from tests.reward_models.chatting import chatting, in_turn, said


def endpoint(url: str, **options: object) -> ChatEndpoint:
    return ChatEndpoint(url, "m", **({"pause": 0.01, "deadline": 20.0} | options))


def ask(asked: ChatEndpoint) -> str:
    return asked.ask("what?", "data:image/png;base64,", max_tokens=5)["message"]["content"]


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_busy_and_broken_servers_are_asked_again(status: int):
    with chatting(in_turn((status, b"wait"), (status, b"wait"), said("done"))) as chat:
        assert ask(endpoint(chat.url)) == "done"
    assert len(chat.asked) == 3


@pytest.mark.parametrize("status", [302, 400, 401, 403, 404, 413, 422])
def test_refusals_are_final(status: int):
    with chatting(in_turn((status, b"never"), said("done"))) as chat, pytest.raises(NoAnswerError) as error:
        ask(endpoint(chat.url))
    assert str(error.value) == f"{chat.url} refuses: {status}: never"
    assert len(chat.asked) == 1


def test_slow_servers_are_asked_again_until_the_deadline():
    with chatting(in_turn(said("late")), seconds=0.5) as chat:
        started = time.monotonic()
        with pytest.raises(
            NoAnswerError, match=r"gave no answer in 0.4 s and \d+ tries; the last: .*(timed out|Timeout)"
        ):
            ask(endpoint(chat.url, timeout=0.1, deadline=0.4))
        assert time.monotonic() - started < 5
    assert len(chat.asked) > 1


def test_deadline_ends_all_tries():
    told = r"gave no answer in 0.3 s and .* tries; the last: 503: never mind"
    with chatting(in_turn((503, b"never mind"))) as chat, pytest.raises(NoAnswerError, match=told):
        ask(endpoint(chat.url, deadline=0.3))
    assert len(chat.asked) > 1


def test_pauses_double_and_are_jittered(monkeypatch: pytest.MonkeyPatch):
    pauses: list[float] = []
    monkeypatch.setattr("difalign.reward_models.chat_endpoint.time.sleep", pauses.append)
    jitter = iter([0.0, 0.5, 0.9])
    with chatting(in_turn((503, b""), (503, b""), (503, b""), said("done"))) as chat:
        ask(endpoint(chat.url, pause=0.01, jitter=lambda: next(jitter)))
    assert [pause for pause in pauses if pause] == pytest.approx([0.005, 0.02, 0.056])


def test_server_that_is_gone_is_no_answer():
    with chatting(in_turn(said("done"))) as chat:
        asked = endpoint(chat.url, deadline=0.3)
        asked.check_listening()
    with pytest.raises(NoAnswerError, match=r"gave no answer in 0.3 s"):
        ask(asked)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"garbage \xff",
        b"[]",
        b'{"choices": []}',
        b'{"error": "no"}',
        b'{"choices": [{"text": "completion"}]}',
        json.dumps({"choices": [{"message": {"content": None}}]}).encode(),
        json.dumps({"choices": ["message"]}).encode(),
    ],
)
def test_what_is_no_completion_is_no_answer(body: bytes):
    with chatting(in_turn((200, body))) as chat, pytest.raises(NoAnswerError, match="is no chat completion"):
        ask(endpoint(chat.url))
    assert len(chat.asked) == 1


def test_endless_answers_are_cut_off():
    with chatting(in_turn((200, b" " * ((1 << 22) + 1)))) as chat, pytest.raises(NoAnswerError, match="longer than"):
        ask(endpoint(chat.url))


def test_no_token_is_sent_unless_there_is_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("MINE", raising=False)
    with chatting(in_turn(said("done"))) as chat:
        ask(endpoint(chat.url, token_variable="MINE"))
        monkeypatch.setenv("MINE", "secret")
        ask(endpoint(chat.url, token_variable="MINE"))
    sent = [{key.lower(): value for key, value in headers.items()}.get("authorization") for headers in chat.headers]
    assert sent == [None, "Bearer secret"]


@pytest.mark.parametrize(
    ("options", "said_so"),
    [
        ({"url": "ftp://here"}, "url = 'ftp://here': must be like http"),
        ({"url": "127.0.0.1:8000"}, "must be like http"),
        ({"model": ""}, "model = ''"),
        ({"timeout": 0.0}, "timeout = 0.0: must be more than 0"),
        ({"deadline": -1.0}, "deadline = -1.0"),
        ({"pause": float("nan")}, "pause = nan"),
    ],
)
def test_options_that_are_none_are_refused(options: dict[str, object], said_so: str):
    with pytest.raises(ValueError, match=said_so):
        ChatEndpoint(**({"url": "http://127.0.0.1:1/v1", "model": "m"} | options))
