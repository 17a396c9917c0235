"""Scores by a language model: what is asked, what is read, and that no failure becomes a number."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import math
import time

import numpy as np
import pytest
import torch
from PIL import Image

from difalign.core.errors import ConfigError
from difalign.core.protocols import RewardModel, SubmittedReward
from difalign.reward_models.vlm import point_score, points, yes_no, yes_share
from tests.reward_models.chatting import chatting, in_turn, said, text_of


def pictures(count: int) -> torch.Tensor:
    return torch.rand(count, 3, 8, 6, generator=torch.Generator().manual_seed(0))


def content(text: str) -> dict[str, object]:
    return json.loads(said(text)[1])["choices"][0]


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("Final Score: 4", 0.8),
        ("Sharp.\nFinal Score:  3.5\n", 0.7),
        ("final score: 5.0.", 1.0),
        ("Final Score: 1/5", 0.2),
    ],
)
def test_points_are_divided_by_five(text: str, score: float):
    assert points(content(text)) == pytest.approx(score)


@pytest.mark.parametrize(
    "text", ["", "4", "Final Score: none", "Final Score: 0", "Final Score: 12", "Final Score: 5.5"]
)
def test_what_is_no_score_is_none(text: str):
    with pytest.raises(ValueError, match="no 'Final Score: X' from 1 to 5"):
        points(content(text))


def test_yes_and_no_are_compared_in_all_their_spellings():
    tokens = {"Yes": 0.4, " yes": 0.2, "No": 0.15, "no": 0.05, "Maybe": 0.1}
    answer = json.loads(said("Yes", **{key: math.log(value) for key, value in tokens.items()})[1])
    assert yes_share(answer["choices"][0]) == pytest.approx(0.6 / 0.8)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (said("Yes"), "has no top_logprobs"),
        (said("Yes", Maybe=-0.1, Perhaps=-2.0), "neither yes nor no is among the likeliest tokens: maybe, perhaps"),
        (said("Yes", Yes=float("nan")), "neither yes nor no"),
        (said("Yes", Yes=-1e9), "neither yes nor no"),
    ],
)
def test_an_answer_without_both_is_none(answer: tuple[int, bytes], reason: str):
    with pytest.raises(ValueError, match=reason):
        yes_share(json.loads(answer[1])["choices"][0])


def test_scores_come_back_in_the_order_of_the_pictures():
    def by_prompt(asked: dict) -> tuple[int, bytes]:
        return said(f"Final Score: {text_of(asked).rstrip()[-1]}")

    with chatting(by_prompt, seconds=0.02) as chat:
        reward = point_score(model="m", url=chat.url, concurrency=3)
        assert isinstance(reward, RewardModel)
        prompts = [f"cats {number}" for number in (3, 1, 5, 2, 4)]
        output = reward.score(pictures(5), prompts)
        assert output.scores.tolist() == pytest.approx([0.6, 0.2, 1.0, 0.4, 0.8])
        alone = reward.score(pictures(5)[1:2], prompts[1:2])
        assert alone.scores.tolist() == pytest.approx([0.2])
    assert output.valid is not None
    assert output.valid.all()
    assert not output.errors
    assert 1 < chat.most_open <= 3


def test_what_is_asked(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DIFALIGN_VLM_TOKEN", "secret")
    with chatting(in_turn(said("yes", yes=-0.1, no=-3.0))) as chat:
        yes_no(model="m", url=chat.url + "/").score(pictures(1), ["a {weird} cat"])
    (asked,), (headers,) = chat.asked, chat.headers
    assert (asked["model"], asked["temperature"], asked["max_tokens"]) == ("m", 0, 1)
    assert (asked["logprobs"], asked["top_logprobs"]) == (True, 20)
    assert headers["path"] == "/v1/chat/completions"
    assert headers["authorization" if "authorization" in headers else "Authorization"] == "Bearer secret"
    assert 'show "a {weird} cat"?' in text_of(asked)
    head, encoded = asked["messages"][0]["content"][0]["image_url"]["url"].split(",")
    assert head == "data:image/png;base64"
    seen = np.array(Image.open(io.BytesIO(base64.b64decode(encoded))))
    assert np.array_equal(seen, (pictures(1)[0] * 255).round().byte().permute(1, 2, 0).numpy())


def test_pictures_are_resized_and_questions_replaced_where_asked():
    with chatting(in_turn(said("Final Score: 4"))) as chat:
        reward = point_score(model="m", url=chat.url, side=32, question="Rate {prompt}.")
        assert reward.score(pictures(1), ["it"]).scores.tolist() == pytest.approx([0.8])
    assert text_of(chat.asked[0]) == "Rate it."
    encoded = chat.asked[0]["messages"][0]["content"][0]["image_url"]["url"].split(",")[1]
    assert Image.open(io.BytesIO(base64.b64decode(encoded))).size == (32, 32)


def test_unreadable_answer_is_asked_for_once_more():
    with chatting(in_turn(said("I would say four."), said("Final Score: 4"))) as chat:
        output = point_score(model="m", url=chat.url).score(pictures(1), ["a"])
    assert output.scores.tolist() == pytest.approx([0.8])
    assert len(chat.asked) == 2


def test_unreadable_answers_are_no_number():
    def by_prompt(asked: dict) -> tuple[int, bytes]:
        return said("Final Score: 4" if "good" in text_of(asked) else "Lovely.")

    with chatting(by_prompt) as chat:
        output = point_score(model="m", url=chat.url, question="{prompt}").score(pictures(3), ["good", "bad", "good"])
    assert output.valid is not None
    assert output.valid.tolist() == [True, False, True]
    assert output.scores[1].isnan()
    assert output.errors == {1: "no 'Final Score: X' from 1 to 5 in the answer 'Lovely.'"}
    assert len(chat.asked) == 4  # the bad one twice


def test_missing_logprobs_are_no_number():
    with chatting(in_turn(said("yes"))) as chat:
        output = yes_no(model="m", url=chat.url).score(pictures(1), ["a"])
    assert output.errors == {0: "the answer has no top_logprobs; start a server that tells them"}
    assert output.scores.isnan().all()


def test_refusals_reach_the_rows():
    with chatting(in_turn((404, b"no such model"))) as chat:
        output = point_score(model="m", url=chat.url).score(pictures(1), ["a"])
    assert output.errors == {0: f"{chat.url} refuses: 404: no such model"}
    assert len(chat.asked) == 1


def test_works_where_an_event_loop_runs():
    async def inside(url: str) -> list[float]:
        return point_score(model="m", url=url).score(pictures(1), ["a"]).scores.tolist()

    with chatting(in_turn(said("Final Score: 4"))) as chat:
        assert asyncio.run(inside(chat.url)) == pytest.approx([0.8])


def test_submitted_batches_are_scored_meanwhile():
    with chatting(in_turn(said("Final Score: 4")), seconds=0.3) as chat:
        reward = point_score(model="m", url=chat.url)
        assert isinstance(reward, SubmittedReward)
        started = time.monotonic()
        later = reward.submit(pictures(2), ["a", "b"])
        assert time.monotonic() - started < 0.25
        assert later.result(20).scores.tolist() == pytest.approx([0.8, 0.8])


def test_what_is_wrong_with_the_call_or_the_options_is_refused():
    with chatting(in_turn(said("Final Score: 4"))) as chat:
        reward = point_score(model="m", url=chat.url)
        with pytest.raises(ValueError, match="vlm-points reads RGB images"):
            reward.score(torch.rand(1, 1, 8, 8), ["a"])
        with pytest.raises(ValueError, match="vlm-points has no gradient"):
            reward.score(pictures(1).requires_grad_(), ["a"])
        with pytest.raises(ValueError, match=r"question = 'Rate it': must say where .* \{prompt\}"):
            point_score(model="m", url=chat.url, question="Rate it")
        for option in ("concurrency", "max_tokens"):
            with pytest.raises(ValueError, match=f"{option} = 0: must be at least 1"):
                point_score(model="m", url=chat.url, **{option: 0})
        closed = chat.url
    with pytest.raises(ConfigError, match=r"no server answers at http.*start it, or give its address"):
        point_score(model="m", url=closed)
