"""Scores by a vision-language model on a server: points out of five, or how much likelier yes is than no.

Point scores are UnifiedReward's (arXiv 2503.05236) as Flow-GRPO trains on them, divided by five; yes and no are
compared as VQAScore does (arXiv 2404.01291), by the first token's probabilities.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor

from difalign.core.types import Metadata, RewardOutput
from difalign.reward_models.chat_endpoint import ChatEndpoint, NoAnswerError, png_address
from difalign.reward_models.media_check import check_media, refuse_gradient
from difalign.reward_models.scorer_input import picture_bytes

Choice = Mapping[str, Any]  # of a chat completion
_POINTS = re.compile(r"Final Score:\s*([1-5](?:\.\d+)?)(?!\d)", re.IGNORECASE)
_BEST = 5.0
_CANDIDATES = 20  # tokens; the most that the interface grants

POINT_QUESTION = (
    "This picture was made for the caption below. Judge two things: whether everything that the caption names is there "
    "as it says, objects, how many, their attributes and how they relate; and how good the picture is as a picture, "
    "its sharpness, composition and freedom from flaws. Explain briefly. Then close with one line, "
    "'Final Score: X', where X is a number from 1 (nothing is right) to 5 (nothing is wrong).\n"
    "Caption: {prompt}"
)
YES_NO_QUESTION = 'Does this picture show "{prompt}"? Answer with one word, yes or no.'


def points(choice: Choice) -> float:
    """The points that an answer closes with, divided by five: from 0.2 to 1.

    Raises:
        ValueError: if there are none.
    """
    text = choice["message"]["content"]
    said = _POINTS.search(text)
    if said is None or float(said[1]) > _BEST:
        raise ValueError(f"no 'Final Score: X' from 1 to 5 in the answer {_end(text)!r}")
    return float(said[1]) / _BEST


def yes_share(choice: Choice) -> float:
    """``P(yes) / (P(yes) + P(no))`` of the first token, in [0, 1]; spaces and case do not matter.

    Raises:
        ValueError: if the answer comes without probabilities, or neither word is among the likeliest.
    """
    try:
        candidates = choice["logprobs"]["content"][0]["top_logprobs"]
        said = [(str(one["token"]).strip().lower(), float(one["logprob"])) for one in candidates]
    except (KeyError, IndexError, TypeError, ValueError):
        raise ValueError("the answer has no top_logprobs; start a server that tells them") from None
    yes, no = (sum(math.exp(value) for word, value in said if word == wanted) for wanted in ("yes", "no"))
    if not (math.isfinite(yes + no) and yes + no > 0):
        raise ValueError(f"neither yes nor no is among the likeliest tokens: {', '.join(word for word, _ in said[:5])}")
    return yes / (yes + no)


def _end(text: str, longest: int = 120) -> str:
    return text if len(text) <= longest else f"...{text[-longest:]}"


@final
@dataclass(slots=True)
class VlmReward:
    """What ``read`` makes of a model's answers; pictures go as PNG, without loss.

    An answer that cannot be read is asked for once more. What has no answer then is not valid, with the reason; a
    number in its place would punish or reward samples for what the server did.
    """

    endpoint: ChatEndpoint
    question: str  # with {prompt}
    read: Callable[[Choice], float]  # raises ValueError
    max_tokens: int
    top_logprobs: int = 0
    side: int = 0  # pixels; pictures are resized to a square of this side, 0 = not at all
    concurrency: int = 8  # questions at a time
    name: str = "vlm"
    differentiable: bool = False
    _background: ThreadPoolExecutor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if "{prompt}" not in self.question:
            raise ValueError(f"question = {self.question!r}: must say where the prompt stands: {{prompt}}")
        for option, least in (("max_tokens", 1), ("side", 0), ("concurrency", 1)):
            if getattr(self, option) < least:
                raise ValueError(f"{option} = {getattr(self, option)}: must be at least {least}")
        self._background = ThreadPoolExecutor(1, thread_name_prefix=self.name)
        self.endpoint.check_listening()

    def score(
        self, media: Tensor, prompts: Sequence[str], *, metadata: Metadata | None = None, sigma: float | None = None
    ) -> RewardOutput:
        """Score pictures [N, 3, H, W] in [0, 1]; ``metadata`` and ``sigma`` are not used.

        Threads ask, so that it may be called where an event loop runs.

        Raises:
            ValueError: for media of another layout.
        """
        check_media(media, prompts, reader=self.name)
        refuse_gradient(media, reader=self.name)
        scores, errors = torch.full((len(prompts),), torch.nan), dict[int, str]()
        with ThreadPoolExecutor(min(self.concurrency, len(prompts))) as pool:
            asked = [pool.submit(self._score_one, *pair) for pair in zip(picture_bytes(media), prompts, strict=True)]
            for row, answer in enumerate(asked):
                try:
                    scores[row] = answer.result()
                except (NoAnswerError, ValueError) as error:
                    errors[row] = str(error)
        valid = ~scores.isnan()
        return RewardOutput(scores.to(media.device), {}, valid.to(media.device), errors)

    def submit(
        self, media: Tensor, prompts: Sequence[str], *, metadata: Metadata | None = None, sigma: float | None = None
    ) -> Future[RewardOutput]:
        """What ``score`` returns, later; batches are asked about one after the other."""
        return self._background.submit(self.score, media, prompts, metadata=metadata, sigma=sigma)

    def _score_one(self, picture: Any, prompt: str) -> float:
        address, text = png_address(picture, side=self.side), self.question.replace("{prompt}", prompt)
        try:
            return self._read_answer(text, address)
        except ValueError:  # an answer that cannot be read; the batches of a server make another one of it at times
            return self._read_answer(text, address)

    def _read_answer(self, text: str, address: str) -> float:
        return self.read(self.endpoint.ask(text, address, max_tokens=self.max_tokens, top_logprobs=self.top_logprobs))


def point_score(
    *,
    model: str,
    url: str = "http://127.0.0.1:17140/v1",
    question: str = "",
    max_tokens: int = 512,
    side: int = 512,
    concurrency: int = 8,
    timeout: float = 120.0,
    deadline: float = 600.0,
    token_variable: str = "DIFALIGN_VLM_TOKEN",
    name: str = "vlm-points",
) -> VlmReward:
    """Points from 1 to 5, divided by five.

    Args:
        model: by the name under which the server knows it.
        url: of an OpenAI-compatible server.
        question: with ``{prompt}``; empty = ``POINT_QUESTION``. A model that was trained on another wording is best
            asked in that.
        max_tokens: of the answer, with its reasons.
        side: pixels that a picture is resized to, 0 = not at all.
        concurrency: questions at a time.
        timeout: seconds a try.
        deadline: seconds a question.
        token_variable: see ``ChatEndpoint``.
        name: of the reward.

    Raises:
        ConfigError: if no server listens.
        ValueError: for options that are out of range.
    """
    endpoint = ChatEndpoint(url, model, token_variable, timeout, deadline)
    return VlmReward(
        endpoint, question or POINT_QUESTION, points, max_tokens, side=side, concurrency=concurrency, name=name
    )


def yes_no(
    *,
    model: str,
    url: str = "http://127.0.0.1:17140/v1",
    question: str = "",
    side: int = 0,
    concurrency: int = 8,
    timeout: float = 120.0,
    deadline: float = 600.0,
    token_variable: str = "DIFALIGN_VLM_TOKEN",
    name: str = "vlm-yes-no",
) -> VlmReward:
    """The probability of yes beside that of no; arguments as in ``point_score``, the question is ``YES_NO_QUESTION``.

    Raises:
        ConfigError: if no server listens.
        ValueError: for options that are out of range.
    """
    endpoint = ChatEndpoint(url, model, token_variable, timeout, deadline)
    return VlmReward(
        endpoint,
        question or YES_NO_QUESTION,
        yes_share,
        max_tokens=1,
        top_logprobs=_CANDIDATES,
        side=side,
        concurrency=concurrency,
        name=name,
    )
