"""The HTTP face of one reward: who may ask, what is read, and what is answered."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from typing import final
from urllib.parse import urlsplit

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from difalign.core.protocols import RewardModel
from difalign.reward_models.media_encoding import Encoding
from difalign.reward_models.score_messages import LARGEST_MEDIA, ScoreReply, ScoreRequest
from difalign.reward_models.tensor_message import SCHEMA
from difalign.server.batching import Batcher, BatchLimits, QueueFull
from difalign.server.body import BodyReader, Refused
from difalign.server.metrics import Metrics

_LOG = logging.getLogger(__name__)
_BODY_TYPE = "application/octet-stream"  # a page in a browser cannot send it elsewhere without asking first
LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class ServedReward:
    """A reward and what is told about it."""

    model: RewardModel
    card_hash: str  # of its card and checkpoint: another hash, another reward
    modality: str = "image"
    needs: Sequence[str] = ()  # metadata that every picture must come with
    version: str = ""  # of difalign


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """What is let in."""

    largest_body: int = LARGEST_MEDIA + (1 << 23)  # bytes; a header besides the media
    bodies_together: int = 1 << 30  # bytes of all requests that are read or wait
    body_seconds: float = 120.0  # for a body to arrive
    encodings: Sequence[Encoding] = ("raw",)
    batching: BatchLimits = field(default_factory=BatchLimits)


def create_app(
    served: ServedReward, *, token: str = "", limits: ServerLimits | None = None, loopback_only: bool = True
) -> FastAPI:
    """The application.

    Args:
        served: what scores.
        token: if given, every request but ``/v1/health`` must carry it.
        limits: sizes and times.
        loopback_only: answer only requests that call this machine by a name of its own, so that no page in a browser
            reaches the server under a name that it controls.
    """
    limits = ServerLimits() if limits is None else limits
    server = _Server(served, token=token, limits=limits, loopback_only=loopback_only)

    @asynccontextmanager
    async def running(_: FastAPI) -> AsyncIterator[None]:
        server.batcher.start()
        yield
        await server.batcher.stop()

    app = FastAPI(title="difalign reward", docs_url=None, redoc_url=None, openapi_url=None, lifespan=running)
    app.add_api_route("/v1/health", server.health, methods=["GET"], response_model=None)
    app.add_api_route("/v1/info", server.info, methods=["GET"], response_model=None)
    app.add_api_route("/v1/metrics", server.counts, methods=["GET"], response_model=None)
    app.add_api_route("/v1/score", server.score, methods=["POST"], response_model=None)
    app.add_exception_handler(Refused, _refusal)
    app.add_exception_handler(HTTPException, _not_found)
    app.add_exception_handler(Exception, _failure)
    return app


@final
class _Server:
    """The handlers and what they share."""

    def __init__(self, served: ServedReward, *, token: str, limits: ServerLimits, loopback_only: bool) -> None:
        self._served = served
        self._token = token.encode()
        self._limits = limits
        self._loopback_only = loopback_only
        self._metrics = Metrics()
        self._bodies = BodyReader(
            largest=limits.largest_body,
            together=max(limits.bodies_together, limits.largest_body),
            seconds=limits.body_seconds,
        )
        self.batcher = Batcher(served.model, limits=limits.batching, metrics=self._metrics)
        self._seen_encodings: set[str] = set()

    async def health(self, request: Request) -> Response:
        """Somebody is here; asked without a token."""
        self._check_host(request)
        return JSONResponse({"status": "ok"})

    async def info(self, request: Request) -> Response:
        """What scores here."""
        self._admit(request)
        return JSONResponse(self._about())

    async def counts(self, request: Request) -> Response:
        """What was done so far."""
        self._admit(request)
        return JSONResponse({**self._metrics.snapshot(), "waiting_pictures": self.batcher.waiting})

    async def score(self, request: Request) -> Response:
        """The scores of what was sent."""
        begin = time.perf_counter()
        status = 500
        try:
            response = await self._score(request)
            status = response.status_code
            return response
        except Refused as refused:
            status = refused.status
            raise
        except ClientDisconnect:
            status = 499  # nobody reads this answer
            return Response(status_code=499)
        finally:
            self._metrics.answered(status, seconds=time.perf_counter() - begin)

    async def _score(self, request: Request) -> Response:
        self._admit(request)
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != _BODY_TYPE:
            raise Refused(415, f"Content-Type must be {_BODY_TYPE}, a safetensors file; see docs/remote_rewards.md")
        with self._bodies.reserved(request) as room:
            body = await self._bodies.read(request, room=room)
            try:
                asked = await asyncio.to_thread(ScoreRequest.from_bytes, body, accepted=self._limits.encodings)
            except ValueError as error:
                raise Refused(400, f"the request {error}") from None
            del body
            self._check_needs(asked)
            self._note(asked.encoding)
            try:
                output = await self.batcher.score(asked)
            except QueueFull as full:
                raise Refused(503, f"{full}; come again", retry_after=1) from None
        reply = ScoreReply(output, request_id=asked.request_id, card_hash=self._served.card_hash)
        return Response(reply.to_bytes(), media_type=_BODY_TYPE)

    def _check_host(self, request: Request) -> None:
        name = request.headers.get("host", "")
        if self._loopback_only and _host_of(name) not in LOOPBACK:
            raise Refused(421, f"this server answers to {', '.join(LOOPBACK)}, not to {name!r:.100}")

    def _admit(self, request: Request) -> None:
        self._check_host(request)
        given = request.headers.get("authorization", "").encode("latin-1")
        if self._token and not hmac.compare_digest(given, b"Bearer " + self._token):
            raise Refused(401, "the token is missing or another one")

    def _check_needs(self, asked: ScoreRequest) -> None:
        for row, metadata in enumerate(asked.metadata or [{}] * len(asked)):
            for key in self._served.needs:
                if key not in metadata:
                    raise Refused(400, f"picture {row} comes without metadata {key!r}, which this reward needs")

    def _note(self, encoding: Encoding) -> None:
        if encoding != "raw" and encoding not in self._seen_encodings:
            self._seen_encodings.add(encoding)
            changed = " and so do not score as the pictures that were made" if encoding == "jpeg" else ""
            _LOG.warning("a client sends pictures as %s, which are decoded%s", encoding, changed)

    def _about(self) -> Mapping[str, object]:
        model, limits = self._served.model, self._limits
        return {
            "name": model.name,
            "modality": self._served.modality,
            "needs": list(self._served.needs),
            "groupwise": bool(getattr(model, "groupwise", False)),
            "differentiable": False,
            "schema": SCHEMA,
            "card_hash": self._served.card_hash,
            "difalign": self._served.version,
            "encodings": list(limits.encodings),
            "largest_body": limits.largest_body,
            **asdict(limits.batching),
        }


def _host_of(authority: str) -> str | None:
    """The name or address of ``name:port``, None where it is malformed."""
    try:
        return urlsplit(f"//{authority}").hostname
    except ValueError:
        return None


def _answer(status: int, why: str, *, retry_after: int | None = None) -> Response:
    headers = {"Connection": "close"} if status in (408, 413) else {}  # what is left of the body is not read
    if retry_after is not None:
        headers["Retry-After"] = str(retry_after)
    # Escaped, since the line may quote half a character of the request.
    return Response(json.dumps({"error": why}), status_code=status, headers=headers, media_type="application/json")


async def _refusal(_: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return _answer(error.status, error.why, retry_after=error.retry_after)


async def _not_found(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _answer(error.status_code, str(error.detail))


async def _failure(_: Request, error: Exception) -> Response:
    """An error of ours: the log has it under a number, the client only the number."""
    number = secrets.token_hex(4)
    _LOG.error("error %s", number, exc_info=error)
    return _answer(500, f"the server failed; its log says more under {number}")
