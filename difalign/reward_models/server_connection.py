"""One reward server over HTTP: what is sent to it, and no more of what it says than is asked for."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, final
from urllib.parse import urlsplit

from difalign.reward_models.server_pool import LONGEST_PAUSE

if TYPE_CHECKING:
    import httpx

_LONGEST_REPLY = 1 << 26  # bytes; scores and components of a batch are far below it
_LONGEST_CONNECT = 10.0  # seconds
_SHOWN = 300  # characters of what a server says
_BUSY = (408, 429, 500, 502, 503, 504)  # statuses after which it is worth asking again
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_OK = 200


class NoAnswer(RuntimeError):
    """A server is not there, busy or failing; another attempt may help, not before ``come_back`` seconds."""

    def __init__(self, why: str, come_back: float = 0.0) -> None:
        super().__init__(why)
        self.come_back = come_back


class BadAnswer(NoAnswer):
    """A server says something else than scores; it will say so again."""


@final
class Connection:
    """Requests to one address, from any number of threads.

    Redirects are not followed and the token is for this address alone. This machine is asked directly, whatever proxy
    the environment names. Replies are read up to a limit and never unpacked.
    """

    def __init__(self, url: str, *, timeout: float, token_variable: str) -> None:
        import httpx

        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"url = {url!r}: must be like http://127.0.0.1:18085")
        self._url = url
        self._timeout = timeout
        self._token_variable = token_variable
        self._client = httpx.Client(
            trust_env=parts.hostname not in _LOOPBACK, follow_redirects=False, headers={"Accept-Encoding": "identity"}
        )

    def info(self) -> Mapping[str, object]:
        """What the server tells about itself.

        Raises:
            NoAnswer: if it does not listen, or not yet.
            ValueError: if it refuses, or is no reward server.
        """
        answer = self._exchange("GET", "/v1/info", None, end=time.monotonic() + self._timeout)
        try:
            about = json.loads(answer)
        except (ValueError, RecursionError):
            about = None
        if not isinstance(about, dict):
            raise ValueError(f"{self._url} is no reward server; give the address of one, without a path")
        return about

    def post(self, path: str, body: bytes, *, end: float) -> bytes:
        """The answer to ``body``, before ``end`` of the monotonic clock.

        Raises:
            NoAnswer, BadAnswer: if there is none.
            ValueError: if the server refuses.
        """
        return self._exchange("POST", path, body, end=end)

    def close(self) -> None:
        """Close what is open."""
        self._client.close()

    def _exchange(self, method: str, path: str, body: bytes | None, *, end: float) -> bytes:
        import httpx

        left = max(end - time.monotonic(), 1e-3)
        seconds = min(self._timeout, left)
        timeout = httpx.Timeout(seconds, connect=min(seconds, _LONGEST_CONNECT))
        headers = {} if body is None else {"Content-Type": "application/octet-stream"}
        if token := os.environ.get(self._token_variable):
            headers["Authorization"] = f"Bearer {token}"
        try:
            with self._client.stream(
                method, self._url + path, content=body, headers=headers, timeout=timeout
            ) as response:
                text = self._read(response, end)
                return self._judged(response, text)
        except httpx.TimeoutException:
            raise NoAnswer(f"{self._url} timed out after {seconds:.3g} s") from None
        except httpx.HTTPError as error:
            raise NoAnswer(f"{self._url} does not answer ({error or type(error).__name__})") from None

    def _read(self, response: httpx.Response, end: float) -> bytes:
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise BadAnswer(f"the answer of {self._url} is packed, which was not asked for")
        pieces = bytearray()
        for piece in response.iter_raw():
            pieces += piece
            if len(pieces) > _LONGEST_REPLY:
                raise BadAnswer(f"the answer of {self._url} is longer than {_LONGEST_REPLY} bytes")
            if time.monotonic() > end:
                raise NoAnswer(f"{self._url} has not ended its answer in time")
        return bytes(pieces)

    def _judged(self, response: httpx.Response, text: bytes) -> bytes:
        status = response.status_code
        if status == _OK:
            return text
        said = f"{status} {response.reason_phrase}: {_line(text)}"
        if status in _BUSY:
            raise NoAnswer(f"{self._url} answers {said}", come_back=_seconds(response.headers.get("Retry-After")))
        raise ValueError(f"{self._url} refuses: {said}; correct the request or the server")


def _line(text: bytes) -> str:
    """What a server says, without what would spoil a terminal."""
    try:
        said = json.loads(text)["error"]
    except (ValueError, RecursionError, KeyError, TypeError, IndexError):
        said = text.decode("utf-8", "replace")
    return "".join(letter if letter.isprintable() else " " for letter in str(said)[:_SHOWN]).strip()


def _seconds(given: str | None) -> float:
    """Of a Retry-After; dates, which nobody of ours sends, count as none."""
    return min(float(given), LONGEST_PAUSE) if given is not None and given.isascii() and given.isdigit() else 0.0
