"""A reward server in the standard library, numpy and safetensors: run it where your scorer's libraries are installed.

    python samples/reward_server.py --port 18085 [--scorer my_package.module:score]

The scorer is a function of pictures, uint8 [N, 3, H, W], and N prompts; it returns N numbers, or a mapping with
``scores`` and further named ones that are logged. Without ``--scorer`` a picture's score is minus its size as JPEG, in
thousands of bytes. Where DIFALIGN_REWARD_TOKEN is set, only requests that carry it are served. What goes over the wire
stands in docs/rewards.md.
"""

from __future__ import annotations

import argparse
import hmac
import importlib
import io
import json
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

Scores = Sequence[float] | np.ndarray | Mapping[str, Sequence[float] | np.ndarray]
Scorer = Callable[[np.ndarray, list[str]], Scores]

SCHEMA = 1
LARGEST_REQUEST = 1 << 30  # bytes


def jpeg_sizes(media: np.ndarray, _: list[str]) -> list[float]:
    """Minus the size of each picture as JPEG, in thousands of bytes."""
    from PIL import Image

    def kilobytes(picture: np.ndarray) -> float:
        buffer = io.BytesIO()
        Image.fromarray(picture.transpose(1, 2, 0)).save(buffer, format="JPEG", quality=95)
        return buffer.tell() / 1000

    return [-kilobytes(picture) for picture in media]


def read_request(body: bytes) -> tuple[np.ndarray, list[str]]:
    """Pictures and prompts of a request.

    Raises:
        ValueError: if it is none.
    """
    try:
        media = load(body)["media"]
        metadata = json.loads(body[8 : 8 + int.from_bytes(body[:8], "little")])["__metadata__"]
        header = json.loads(metadata["difalign"])
        prompts = header["prompts"]
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"the request is not understood: {error!r}") from None
    if header["schema"] != SCHEMA:
        raise ValueError(f"the request is of schema {header['schema']}, and {SCHEMA} is spoken here")
    if media.dtype != np.uint8 or len(media) != len(prompts):
        raise ValueError(f"{len(media)} media of type {media.dtype} and {len(prompts)} prompts")
    return media, prompts


def write_reply(scores: Scores) -> bytes:
    """The scores as they are sent."""
    named = scores if isinstance(scores, Mapping) else {"scores": scores}
    tensors = {name: np.ascontiguousarray(values, dtype=np.float32) for name, values in named.items()}
    return save(tensors, metadata={"difalign": json.dumps({"schema": SCHEMA})})


class RewardServer(ThreadingHTTPServer):
    """Answers every POST with the scores of ``scorer``, one request at a time, and every GET with ``ready``."""

    def __init__(self, address: tuple[str, int], scorer: Scorer, *, token: str = "") -> None:
        super().__init__(address, RewardHandler)
        self.scorer = scorer
        self.token = token
        self.lock = threading.Lock()  # a model on a GPU is not asked twice at once

    @property
    def url(self) -> str:
        """What a client is given as ``url``."""
        return f"http://{self.server_address[0]}:{self.server_address[1]}/score"


class RewardHandler(BaseHTTPRequestHandler):
    """One request."""

    def do_GET(self) -> None:
        """Say that somebody is here."""
        self._answer(200, b"ready")

    def do_POST(self) -> None:
        """Score what was sent."""
        server = cast("RewardServer", self.server)
        given, expected = self.headers.get("Authorization", ""), f"Bearer {server.token}"
        if server.token and not hmac.compare_digest(given.encode(), expected.encode()):
            return self._answer(401, b"the token is missing or another one")
        length = int(self.headers.get("Content-Length", 0))
        if length > LARGEST_REQUEST:
            return self._answer(413, b"the request is too long; send fewer pictures at once")
        try:
            media, prompts = read_request(self.rfile.read(length))
        except ValueError as error:
            return self._answer(400, str(error).encode())
        try:
            with server.lock:
                reply = write_reply(server.scorer(media, prompts))
        except Exception as error:
            self._answer(500, f"the scorer failed: {error!r}".encode())
            raise  # the server's log has the traceback; the server goes on
        self._answer(200, reply)

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """One line a request, on stderr; the base class names the argument."""
        sys.stderr.write(f"{self.address_string()} {format % args}\n")


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 listens to other machines as well; set a token")
    parser.add_argument("--port", type=int, default=18085, help="0 takes a free one")
    parser.add_argument("--scorer", help="package.module:function")
    options = parser.parse_args()
    scorer: Scorer = jpeg_sizes
    if options.scorer is not None:
        module, _, function = options.scorer.partition(":")
        scorer = getattr(importlib.import_module(module), function)
    with RewardServer(
        (options.host, options.port), scorer, token=os.environ.get("DIFALIGN_REWARD_TOKEN", "")
    ) as server:
        print(f"serving {server.url}", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
