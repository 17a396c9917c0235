"""Bodies are read no further than is allowed, and all of them together hold no more than is allowed."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.requests import Request

from difalign.server.body import BodyReader, Refused


class Sender:
    """A client that sends ``pieces`` of 1000 bytes, and counts those that were asked for."""

    def __init__(self, pieces: int, *headers: tuple[bytes, bytes], pause: float = 0.0) -> None:
        self.pieces, self.pause, self.asked = pieces, pause, 0
        self.request = Request({"type": "http", "method": "POST", "headers": list(headers)}, self.receive)

    async def receive(self) -> dict[str, Any]:
        self.asked += 1
        await asyncio.sleep(self.pause)
        return {"type": "http.request", "body": bytes(1000), "more_body": self.asked < self.pieces}


def read(reader: BodyReader, sender: Sender) -> bytes:
    async def whole() -> bytes:
        with reader.reserved(sender.request) as room:
            return await reader.read(sender.request, room=room)

    return asyncio.run(whole())


def refusal(reader: BodyReader, sender: Sender) -> Refused:
    with pytest.raises(Refused) as caught:
        read(reader, sender)
    return caught.value


def test_a_body_of_the_largest_length_is_read():
    reader = BodyReader(largest=5000, together=5000, seconds=5)
    assert read(reader, Sender(5)) == bytes(5000)
    assert read(reader, Sender(5, (b"content-length", b"5000"))) == bytes(5000)


def test_reading_stops_at_the_first_byte_too_many():
    sender = Sender(1_000_000)
    assert refusal(BodyReader(largest=5000, together=5000, seconds=5), sender).status == 413
    assert sender.asked == 6


def test_a_length_that_is_announced_is_refused_unread_and_held_to():
    reader = BodyReader(largest=5000, together=5000, seconds=5)
    sender = Sender(1, (b"content-length", b"5001"))
    assert refusal(reader, sender).status == 413
    assert sender.asked == 0
    assert refusal(reader, Sender(3, (b"content-length", b"2000"))).status == 413
    for length in (b"-1", b"many", b"\xb2", b""):
        assert refusal(reader, Sender(1, (b"content-length", length))).status == 400
    assert refusal(reader, Sender(1, (b"content-length", b"9" * 5000))).status == 413


def test_a_slow_body_is_given_up():
    assert refusal(BodyReader(largest=5000, together=5000, seconds=0.02), Sender(5, pause=0.05)).status == 408


def test_bodies_share_what_memory_there_is_and_give_it_back():
    reader = BodyReader(largest=5000, together=8000, seconds=5)
    with reader.reserved(Sender(1).request):
        refused = refusal(reader, Sender(5))
        assert (refused.status, refused.retry_after) == (503, 1)
        assert len(read(reader, Sender(3, (b"content-length", b"3000")))) == 3000
    assert len(read(reader, Sender(5))) == 5000
    refusal(reader, Sender(9))
    assert len(read(reader, Sender(5))) == 5000
