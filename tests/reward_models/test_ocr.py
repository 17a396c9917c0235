"""Text in pictures: read by the real engine, and compared."""

from __future__ import annotations

import logging
import socket
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from difalign.core.protocols import RewardModel
from difalign.reward_models.ocr import OcrReward, Picture, RapidOcrReader, UnreadablePictureError, text_reward
from tests.reward_models.lettering import lettered


class Recited:
    """A reader that recites; None breaks."""

    def __init__(self, *texts: str | None) -> None:
        self.texts = list(texts)

    def __call__(self, picture: Picture) -> str:
        text = self.texts.pop(0)
        if text is None:
            raise UnreadablePictureError("rapidocr: out of ink")
        return text


def blank(count: int) -> torch.Tensor:
    return torch.ones(count, 3, 8, 8)


@pytest.fixture(scope="module")
def reader() -> RapidOcrReader:
    return RapidOcrReader(threads=1)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_is_a_reward():
    assert isinstance(OcrReward(), RewardModel)


@pytest.mark.parametrize(
    ("target", "read", "reward"),
    [
        ("open", "open", 1.0),
        ("open", "wearopendaily", 1.0),  # within
        ("open", "opem", 0.75),
        ("open", "", 0.0),
        ("open", "abcdefghijk", 0.0),  # never below, however much else there is
        ("open", "opn", 0.75),
        ("helloworld", "heloworld", 0.9),
    ],
)
def test_reward_is_the_share_of_letters_that_are_right(target: str, read: str, reward: float):
    assert text_reward(target, read) == pytest.approx(reward)


def test_rendered_text_is_read_offline(reader: RapidOcrReader, offline: None, capfd: pytest.CaptureFixture[str]):
    media = lettered("Hello World", "Helo World", "New York\nCoffee", "")
    prompts = ['says "Hello World"', 'says "hello world"', 'says "New York\nCoffee"', 'says "OPEN"']
    scores = OcrReward(reader=reader).score(media, prompts)
    assert scores.scores.tolist() == pytest.approx([1.0, 0.9, 1.0, 0.0])
    assert scores.components["exact"].tolist() == [1.0, 0.0, 1.0, 0.0]
    assert scores.valid is not None
    assert scores.valid.all()
    assert capfd.readouterr() == ("", "")  # rapidocr's log has a handler of its own
    assert logging.getLogger("RapidOCR").level == logging.CRITICAL


def test_reader_is_handed_rows_of_rgb():
    seen: list[Picture] = []

    def remember(picture: Picture) -> str:
        seen.append(picture)
        return ""

    red = torch.zeros(1, 3, 4, 6)
    red[:, 0] = 1
    OcrReward(reader=remember).score(red, ['"a"'])
    assert seen[0].shape == (4, 6, 3)
    assert seen[0][0, 0].tolist() == [255, 0, 0]


def test_one_picture_does_not_change_the_score_of_another(reader: RapidOcrReader):
    media, prompt = lettered("STOP", "Exit", ink="navy"), 'says "STOP"'
    reward = OcrReward(reader=reader)
    together = reward.score(media, [prompt, prompt]).scores
    apart = [float(reward.score(picture[None], [prompt]).scores) for picture in media]
    assert together.tolist() == apart
    assert apart[0] == 1.0 > apart[1]


def test_released_code_never_grants_two_lines_all():
    target, read = 'a "New York\nCoffee"', "New YorkCoffee"
    ours = OcrReward(reader=Recited(read)).score(blank(1), [target])
    theirs = OcrReward(compat="flow_grpo", reader=Recited(read)).score(blank(1), [target])
    assert float(ours.scores) == 1.0
    assert float(theirs.scores) == pytest.approx(1 - 1 / 14)


@pytest.mark.parametrize("compat", ["none", "flow_grpo"])
def test_broken_engine_is_no_number(compat: str):
    output = OcrReward(compat=compat, reader=Recited("open", None, "")).score(blank(3), ['"OPEN"'] * 3)
    assert output.valid is not None
    assert output.valid.tolist() == [True, False, True]
    assert output.scores[[0, 2]].tolist() == [1.0, 0.0]
    assert output.scores[1].isnan()
    assert output.errors == {1: "rapidocr: out of ink"}


def test_failure_inside_the_engine_is_told(reader: RapidOcrReader, monkeypatch: pytest.MonkeyPatch):
    def broken(content: object) -> None:
        raise ValueError("box without area")

    monkeypatch.setattr(reader, "_engine", broken)
    output = OcrReward(reader=reader).score(blank(1), ['"OPEN"'])
    assert output.errors == {0: "rapidocr: box without area"}


def test_engine_is_handed_what_it_takes_an_array_for(reader: RapidOcrReader, monkeypatch: pytest.MonkeyPatch):
    seen: list[Picture] = []
    monkeypatch.setattr(reader, "_engine", lambda content: seen.append(content) or SimpleNamespace(txts=("a", "b")))
    red = np.zeros((4, 6, 3), dtype=np.uint8)
    red[..., 0] = 255
    assert reader(red) == "ab"
    assert seen[0][0, 0].tolist() == [0, 0, 255]  # blue, green, red


def test_metadata_names_the_target():
    output = OcrReward(reader=Recited("closed")).score(blank(1), ["a sign"], metadata=[{"target_text": "CLOSED"}])
    assert output.scores.tolist() == [1.0]


def test_prompt_without_target_is_refused_before_anything_is_read():
    with pytest.raises(ValueError, match="'a sign' does not say which text"):
        OcrReward(reader=Recited()).score(blank(2), ['"OPEN"', "a sign"])


def test_media_are_checked():
    with pytest.raises(ValueError, match="ocr reads RGB images"):
        OcrReward(reader=Recited()).score(torch.ones(1, 1, 8, 8), ['"OPEN"'])
    with pytest.raises(ValueError, match="ocr has no gradient to the pixels"):
        OcrReward(reader=Recited()).score(blank(1).requires_grad_(), ['"OPEN"'])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"compat": "flowgrpo"}, r"compat = 'flowgrpo': use one of: none, flow_grpo"),
        ({"threads": 0}, r"threads = 0: must be at least 1"),
        ({"min_confidence": 1.5}, r"min_confidence = 1.5: must lie in \[0, 1\]"),
    ],
)
def test_options_that_are_none_are_refused(options: dict[str, object], said: str):
    with pytest.raises(ValueError, match=said):
        OcrReward(**options)
