"""Reading the body of a request without holding more of it in memory than was allowed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import final

from starlette.requests import Request


class Refused(Exception):
    """A request that is answered with a status and one line."""

    def __init__(self, status: int, why: str, *, retry_after: int | None = None) -> None:
        super().__init__(why)
        self.status = status
        self.why = why
        self.retry_after = retry_after  # seconds


@final
class BodyReader:
    """Reads bodies of at most ``largest`` bytes, ``together`` bytes at a time for all clients.

    A length that is announced is reserved before the first byte is read; a client that announces none reserves the
    largest. So no number of clients makes the server hold more.
    """

    def __init__(self, *, largest: int, together: int, seconds: float) -> None:
        if largest < 1 or together < largest:
            raise ValueError(f"largest = {largest}, together = {together}: must be at least 1, and the larger second")
        self._largest = largest
        self._free = together
        self._seconds = seconds

    @contextmanager
    def reserved(self, request: Request) -> Iterator[int]:
        """Memory for the body, given back at the end; the number of bytes.

        Raises:
            Refused: 413 if the body is too large, 503 if there is no room at present.
        """
        room = self._announced(request)
        if room > self._free:
            raise Refused(503, "too many requests at once; come again", retry_after=1)
        self._free -= room
        try:
            yield room
        finally:
            self._free += room

    async def read(self, request: Request, *, room: int) -> bytes:
        """The body.

        Raises:
            Refused: 413 as soon as more than ``room`` bytes have come, 408 if they take too long.
        """
        body = bytearray()
        try:
            async with asyncio.timeout(self._seconds):
                async for piece in request.stream():
                    body += piece
                    if len(body) > room:
                        raise Refused(413, self._too_large())
        except TimeoutError:
            raise Refused(408, f"the request did not arrive within {self._seconds:g} seconds") from None
        return bytes(body)

    def _announced(self, request: Request) -> int:
        encoding = request.headers.get("content-encoding", "identity")
        if encoding.strip().lower() != "identity":  # a few bytes may stand for any number
            raise Refused(415, f"Content-Encoding {encoding!r:.40} is not read; send the bytes as they are")
        length = request.headers.get("content-length")
        if length is None:
            return self._largest
        if not length.isascii() or not length.isdigit():
            raise Refused(400, "Content-Length is no number")
        if len(length) > 20 or int(length) > self._largest:
            raise Refused(413, self._too_large())
        return int(length)

    def _too_large(self) -> str:
        return f"the request is longer than {self._largest} bytes; send fewer pictures at once"
