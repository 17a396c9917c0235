"""One question about one picture to a model behind an OpenAI-compatible address, asked again where that may help."""

from __future__ import annotations

import base64
import io
import json
import os
import random
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, final
from urllib.parse import urlsplit

from difalign.core.errors import ConfigError

if TYPE_CHECKING:
    import httpx

_LONGEST_REPLY = 1 << 22  # bytes; an answer of a thousand words has far fewer
_SHOWN = 200  # characters of what a server says
_BUSY = 429
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class NoAnswerError(RuntimeError):
    """There is no usable answer to this question; others may have one."""


@final
@dataclass(slots=True, weakref_slot=True)
class ChatEndpoint:
    """Asks ``POST url/chat/completions`` with temperature 0.

    A server that is busy (429), broken (5xx), slow or away is asked again after a pause that doubles, up or down by
    half at random, so that many samples do not come back at once; anything else that it says is final. All tries for
    one question end with ``deadline``. Redirects are not followed, since the token is for one address; this machine is
    asked directly, whatever proxy the environment names.
    """

    url: str  # such as http://127.0.0.1:8000/v1
    model: str  # by the name under which the server knows it
    token_variable: str = "DIFALIGN_VLM_TOKEN"  # of the environment; where it is set, it is sent as a bearer token
    timeout: float = 120.0  # seconds a try
    deadline: float = 600.0  # seconds a question, over all tries
    pause: float = 1.0  # seconds before the second try
    jitter: Callable[[], float] = random.random  # in [0, 1)
    _client: httpx.Client = field(init=False, repr=False)

    def __post_init__(self) -> None:
        import httpx

        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"url = {self.url!r}: must be like http://127.0.0.1:8000/v1")
        if not self.model:
            raise ValueError("model = '': must be the name under which the server knows its model")
        for option in ("timeout", "deadline", "pause"):
            if not getattr(self, option) > 0:
                raise ValueError(f"{option} = {getattr(self, option)}: must be more than 0 seconds")
        self.url = self.url.rstrip("/")
        # As many connections as there are threads that ask; they are closed with this object.
        self._client = httpx.Client(trust_env=parts.hostname not in _LOOPBACK, limits=httpx.Limits())
        weakref.finalize(self, self._client.close)

    def check_listening(self) -> None:
        """Make sure that somebody listens: better known before hours of sampling than after.

        Raises:
            ConfigError: if nobody does.
        """
        import httpx

        try:
            self._client.get(f"{self.url}/models", headers=self._headers(), timeout=min(self.timeout, 10.0))
        except httpx.HTTPError as error:
            raise ConfigError(
                f"no server answers at {self.url} ({_reason(error)}): start it, or give its address as options.url"
            ) from None

    def ask(self, text: str, picture: str, *, max_tokens: int, top_logprobs: int = 0) -> Mapping[str, Any]:
        """The first choice of the answer.

        Args:
            text: the question.
            picture: its address; see ``png_address``.
            max_tokens: of the answer.
            top_logprobs: how many candidates of each token to be told, 0 for none.

        Raises:
            NoAnswerError: if the deadline passes, the server refuses, or what it says is no answer.
        """
        content = [{"type": "image_url", "image_url": {"url": picture}}, {"type": "text", "text": text}]
        asked: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "temperature": 0,
            "max_tokens": max_tokens,
        }
        if top_logprobs:
            asked |= {"logprobs": True, "top_logprobs": top_logprobs}
        return _first_choice(self._post(asked))

    def _post(self, asked: Mapping[str, Any]) -> bytes:
        import httpx

        end, tries, reason = time.monotonic() + self.deadline, 0, ""
        while (left := end - time.monotonic()) > 0:
            tries += 1
            try:
                with self._client.stream(
                    "POST",
                    f"{self.url}/chat/completions",
                    json=asked,
                    headers=self._headers(),
                    timeout=min(self.timeout, left),
                ) as reply:
                    body = _read(reply, end)
            except httpx.RequestError as error:  # slow, away, or cut off
                reason = _reason(error)
            else:
                if reply.status_code == httpx.codes.OK:
                    return body
                reason = _said(reply.status_code, body)
                if reply.status_code != _BUSY and not reply.is_server_error:
                    raise NoAnswerError(f"{self.url} refuses: {reason}")
            pause = self.pause * 2 ** (tries - 1) * (0.5 + self.jitter())
            time.sleep(max(0.0, min(pause, end - time.monotonic())))
        raise NoAnswerError(f"{self.url} gave no answer in {self.deadline:g} s and {tries} tries; the last: {reason}")

    def _headers(self) -> dict[str, str]:
        token = os.environ.get(self.token_variable)
        return {"Authorization": f"Bearer {token}"} if token else {}


def png_address(picture: Any, *, side: int = 0) -> str:
    """A picture, uint8 [H, W, 3], as a data URL of its PNG, resized to ``side`` x ``side`` pixels unless that is 0."""
    from PIL import Image

    image = Image.fromarray(picture)
    if side:
        image = image.resize((side, side), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _read(reply: httpx.Response, end: float) -> bytes:
    import httpx

    body = bytearray()
    for block in reply.iter_bytes():
        body += block
        if len(body) > _LONGEST_REPLY:
            raise NoAnswerError(f"the answer is longer than {_LONGEST_REPLY} bytes")
        if time.monotonic() > end:  # a server that trickles keeps to every timeout between two bytes
            raise httpx.ReadTimeout("the answer is not whole at the deadline")
    return bytes(body)


def _first_choice(body: bytes) -> Mapping[str, Any]:
    try:
        choice = json.loads(body)["choices"][0]
        if not isinstance(choice, dict) or not isinstance(choice["message"]["content"], str):
            raise TypeError
    except (ValueError, LookupError, TypeError):
        shown = body[:_SHOWN].decode("utf-8", "replace")
        raise NoAnswerError(f"what the server says is no chat completion: {shown!r}") from None
    return choice


def _said(status: int, body: bytes) -> str:
    text = body[:_SHOWN].decode("utf-8", "replace").strip()
    return f"{status}{': ' if text else ''}{text}"


def _reason(error: Exception) -> str:
    return str(error).strip() or type(error).__name__
