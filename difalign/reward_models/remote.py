"""A reward that another process computes: for scorers whose libraries or memory do not fit beside the training.

What goes over the wire stands in ``docs/rewards.md``; ``samples/reward_server.py`` is a server in the standard library.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from http.client import HTTPException
from typing import IO, Any, final
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, OpenerDirector, ProxyHandler, Request, build_opener

import torch
from torch import Tensor

from difalign.core.errors import ConfigError
from difalign.core.types import Metadata, RewardOutput
from difalign.reward_models.tensor_message import TensorMessage

_LONGEST_REPLY = 1 << 26  # bytes; scores and components of a batch are far below it
_SHOWN = 300  # characters of what a server says
_BUSY = (429, 502, 503, 504)  # statuses after which it is worth asking again
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@final
@dataclass(frozen=True, slots=True)
class RemoteReward:
    """Scores from an HTTP server, ``micro_batch`` pictures a request; no gradient.

    Pixels are rounded to 8 bits. A request that finds no server, or a busy one, is repeated ``retries`` times, after
    ``pause`` seconds and then twice as long each time. An answer that cannot be used is an error and never a score: a
    silent 0 would punish samples for what the server did.
    """

    url: str  # of the one address that scores, such as http://127.0.0.1:18085/score
    timeout: float = 300.0  # seconds without a byte
    micro_batch: int = 64
    retries: int = 3
    pause: float = 1.0  # seconds
    token_variable: str = "DIFALIGN_REWARD_TOKEN"  # of the environment; where it is set, it is sent as a bearer token
    name: str = "remote"
    differentiable: bool = False

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"url = {self.url!r}: must be like http://127.0.0.1:18085/score")
        for option, least in (("micro_batch", 1), ("retries", 0), ("timeout", 1e-3), ("pause", 0)):
            if getattr(self, option) < least:
                raise ValueError(f"{option} = {getattr(self, option)}: must be at least {least}")
        self._ask(None)  # that nobody listens is better known before hours of sampling than after

    def score(
        self, media: Tensor, prompts: Sequence[str], *, metadata: Metadata | None = None, sigma: float | None = None
    ) -> RewardOutput:
        """Score pictures [N, 3, H, W], or clips [N, F, 3, H, W], in [0, 1] against one prompt each.

        Raises:
            ConfigError: if no server answers at ``url``.
            ValueError: if it refuses, or answers with something else than one finite float32 a prompt.
        """
        if len(media) != len(prompts):
            raise ValueError(f"{len(media)} pictures but {len(prompts)} prompts; give one prompt a picture")
        bytes_of = (media.detach() * 255).round().clamp(0, 255).to(torch.uint8)
        parts: list[dict[str, Tensor]] = []
        for start in range(0, len(prompts), self.micro_batch):
            rows = slice(start, start + self.micro_batch)
            asked = TensorMessage({"media": bytes_of[rows]}, {"prompts": list(prompts[rows])})
            parts.append(self._scores(self._ask(asked.to_bytes()), prompts[rows]))
        if any(part.keys() != parts[0].keys() for part in parts):
            raise self._bad(f"names other scores from one request to the next: {sorted(map(sorted, parts))}")
        joined = {name: torch.cat([part[name] for part in parts]).to(media.device) for name in parts[0]}
        return RewardOutput(joined.pop("scores"), joined)

    def _scores(self, body: bytes, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Every tensor of an answer, checked: ``scores`` and components."""
        try:
            answer = TensorMessage.from_bytes(body).tensors
        except ValueError as error:
            raise self._bad(str(error)) from None
        if "scores" not in answer:
            raise self._bad(f"has no tensor 'scores', only {sorted(answer)}")
        for name, values in answer.items():
            if values.dtype != torch.float32 or values.shape != (len(prompts),):
                raise self._bad(
                    f"has {name!r} of type {values.dtype} and shape {tuple(values.shape)}, not float32 [{len(prompts)}]"
                )
            bad = (~values.isfinite()).nonzero().flatten().tolist()
            if bad:
                raise self._bad(f"has {name!r} = {float(values[bad[0]])} for {prompts[bad[0]]!r}, no finite number")
        return dict(answer)

    def _bad(self, what: str) -> ValueError:
        return ValueError(f"the answer of {self.url} {what}; see what the server says, and correct it")

    def _ask(self, body: bytes | None) -> bytes:
        """The answer to a POST of ``body``; without one, whether anybody listens."""
        token = os.environ.get(self.token_variable)
        headers = {"Content-Type": "application/octet-stream"}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        reason = ""
        for attempt in range(self.retries + 1):
            if attempt:
                time.sleep(self.pause * 2 ** (attempt - 1))
            try:
                with _opener(urlsplit(self.url).hostname in _LOOPBACK).open(
                    Request(self.url, data=body, headers=headers), timeout=self.timeout
                ) as reply:
                    return self._read(reply)
            except HTTPError as error:
                if body is None:  # somebody listens; what else it says to GET does not matter
                    return b""
                if error.code not in _BUSY:
                    raise ValueError(f"{self.url} refuses: {_said(error)}; correct the request or the server") from None
                reason = _said(error)
            except (OSError, HTTPException) as error:
                reason = str(getattr(error, "reason", error)) or type(error).__name__
        raise ConfigError(
            f"no reward server answers at {self.url} ({reason}; asked {self.retries + 1} times): start it, or give "
            "its address as options.url"
        )

    def _read(self, reply: Any) -> bytes:
        body = reply.read(_LONGEST_REPLY + 1)
        if len(body) > _LONGEST_REPLY:
            raise self._bad(f"is longer than {_LONGEST_REPLY} bytes")
        return body


class _Stay(HTTPRedirectHandler):
    """A redirect is an error: the token is for one address."""

    def redirect_request(  # noqa: PLR0917  # the base class is called by position
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> None:
        """Follow nothing."""


@cache
def _opener(here: bool) -> OpenerDirector:
    """One that asks this machine directly, whatever proxy the environment names, and others as it says."""
    return build_opener(_Stay(), *((ProxyHandler({}),) if here else ()))


def _said(error: HTTPError) -> str:
    text = error.read(_SHOWN).decode("utf-8", "replace").strip()
    return f"{error.code} {error.reason}{': ' if text else ''}{text}"
