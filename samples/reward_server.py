"""A reward server in the standard library, numpy and safetensors: run it where your scorer's libraries are installed.

    python samples/reward_server.py --port 18085 [--scorer my_package.module:score]

The scorer is a function of pictures, uint8 [N, 3, H, W] (clips: [N, F, 3, H, W]), and N prompts, and of N mappings of
metadata if it has a third argument. It returns N numbers, or a mapping with ``scores`` and further named ones that are
logged; NaN says that a picture could not be scored. Without ``--scorer`` a picture's score is minus its size as JPEG,
in thousands of bytes. Where the module has a function ``load(random_weights)``, it is called once at the start.

Where DIFALIGN_REWARD_TOKEN is set, only requests that carry it are served; other machines are listened to with a token
only. What goes over the wire stands in docs/remote_rewards.md. Runs on Python 3.8 and later.
"""

from __future__ import annotations

import argparse
import hashlib
import hmac
import importlib
import inspect
import io
import json
import os
import sys
import threading
import traceback
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

SCHEMA = 1
LARGEST_REQUEST = 1 << 28  # bytes
LONGEST_HEADER = 1 << 22  # bytes
SHOWN = 300  # characters of an error
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def jpeg_sizes(media: np.ndarray, _: list[str]) -> list[float]:
    """Minus the size of each picture as JPEG, in thousands of bytes."""
    from PIL import Image

    def kilobytes(picture: np.ndarray) -> float:
        buffer = io.BytesIO()
        Image.fromarray(picture.transpose(1, 2, 0)).save(buffer, format="JPEG", quality=95)
        return buffer.tell() / 1000

    return [-kilobytes(picture) for picture in media]


class Scorer:
    """A function that scores, and who it is."""

    def __init__(self, name: str | None, *, identity: str = "", random_weights: bool = False) -> None:
        self.name = name or "jpeg_sizes"
        self.function: Callable[..., Any] = jpeg_sizes
        if name is not None:
            module_name, _, attribute = name.partition(":")
            module = importlib.import_module(module_name)
            self.function = getattr(module, attribute or "score")
            if hasattr(module, "load"):
                module.load(random_weights)
        source = Path(inspect.getfile(self.function)).read_bytes()
        parts = (self.name, identity, str(random_weights), hashlib.sha256(source).hexdigest())
        self.card_hash = hashlib.sha256("\0".join(parts).encode()).hexdigest()
        self.takes_metadata = len(inspect.signature(self.function).parameters) > 2
        self.lock = threading.Lock()  # a model on a GPU is not asked twice at once

    def score(self, media: np.ndarray, header: dict) -> tuple[dict, dict[str, str]]:
        """The tensors of an answer, and why rows have no score; a batch that fails is scored row by row."""
        try:
            return self._batch(media, header)
        except Exception as error:  # noqa: BLE001  # whatever a scorer raises fails its rows and not the server
            if len(media) == 1:
                traceback.print_exc()  # for the log; the client gets a line
                return {"scores": np.full(1, np.nan, np.float32)}, {"0": f"the scorer failed: {error!r}"[:SHOWN]}
        rows = [self.score(media[i : i + 1], rows_of(header, i)) for i in range(len(media))]
        names = dict.fromkeys(name for tensors, _ in rows for name in tensors)
        nothing = np.full(1, np.nan, np.float32)
        joined = {name: np.concatenate([tensors.get(name, nothing) for tensors, _ in rows]) for name in names}
        return joined, {str(i): errors["0"] for i, (_, errors) in enumerate(rows) if errors}

    def _batch(self, media: np.ndarray, header: dict) -> tuple[dict, dict[str, str]]:
        arguments: list[Any] = [media, header["prompts"]]
        if self.takes_metadata:
            arguments.append(header.get("metadata") or [{}] * len(media))
        with self.lock:
            given = self.function(*arguments)
        named = given if isinstance(given, dict) else {"scores": given}
        tensors = {name: np.ascontiguousarray(values, dtype=np.float32) for name, values in named.items()}
        if "scores" not in tensors or any(values.shape != (len(media),) for values in tensors.values()):
            shapes = {name: values.shape for name, values in tensors.items()}
            raise ValueError(f"the scorer gave {shapes} for {len(media)} pictures")
        bad = np.flatnonzero(~np.all([np.isfinite(values) for values in tensors.values()], axis=0))
        for values in tensors.values():
            values[bad] = np.nan
        return tensors, {str(row): "the scorer gave no finite number" for row in bad}


def rows_of(header: dict, row: int) -> dict:
    """The header of a request for one of its rows."""
    return {key: header[key][row : row + 1] for key in ("prompts", "metadata") if header.get(key)}


def read_request(body: bytes) -> tuple[np.ndarray, dict]:
    """Pictures and header of a request.

    Raises:
        ValueError: if it is none.
    """
    try:
        length = int.from_bytes(body[:8], "little")
        if length > LONGEST_HEADER:
            raise ValueError(f"its header of {length} bytes is longer than {LONGEST_HEADER}")
        header = json.loads(json.loads(body[8 : 8 + length])["__metadata__"]["difalign"])
        schema, prompts, metadata = header["schema"], header["prompts"], header.get("metadata")
        media = load(body)["media"]
    except (SafetensorError, KeyError, ValueError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise ValueError(f"the request is not understood: {error!r}"[:SHOWN]) from None
    if schema != SCHEMA:
        raise ValueError(f"the request is of schema {schema}, and {SCHEMA} is spoken here"[:SHOWN])
    if header.get("encoding", "raw") != "raw":
        raise ValueError("the request has encoded media; accepted here: raw")
    if media.dtype != np.uint8 or media.ndim not in (4, 5) or media.shape[-3] != 3 or not media.size:
        raise ValueError(f"media of type {media.dtype} and shape {media.shape}, not uint8 [N, 3, H, W]")
    if not isinstance(prompts, list) or len(media) != len(prompts) or not all(isinstance(p, str) for p in prompts):
        raise ValueError(f"{len(media)} media and prompts {str(prompts)[:SHOWN]}")
    if metadata is not None and (not isinstance(metadata, list) or len(metadata) != len(prompts)):
        raise ValueError(f"{len(media)} media and metadata {str(metadata)[:SHOWN]}")
    return media, header


def write_reply(tensors: dict, errors: dict[str, str], header: dict, card_hash: str) -> bytes:
    """An answer as it is sent."""
    valid = np.isfinite(tensors["scores"])
    named = {name if name == "scores" else f"components.{name}": values for name, values in tensors.items()}
    told = {
        "schema": SCHEMA,
        "request_id": str(header.get("request_id", ""))[:SHOWN],
        "card_hash": card_hash,
        "errors": errors,
    }
    return save({**named, "valid": valid}, metadata={"difalign": json.dumps(told)})


class RewardServer(ThreadingHTTPServer):
    """Answers with the scores of ``scorer``, one request at a time."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], scorer: Scorer, *, token: str = "") -> None:
        super().__init__(address, RewardHandler)
        self.scorer = scorer
        self.token = token
        self.local = address[0] in LOOPBACK


class RewardHandler(BaseHTTPRequestHandler):
    """One request."""

    timeout = 300  # seconds without a byte

    def do_GET(self) -> None:
        """Say that somebody is here, or who."""
        server = cast("RewardServer", self.server)
        if self.path == "/v1/health" and self._known_host():
            return self._answer(200, b'{"status": "ok"}')
        if self.path != "/v1/info":
            return self._refuse(404, "no such address; there are /v1/health, /v1/info and /v1/score")
        if self._admitted():
            told = {
                "name": server.scorer.name,
                "modality": "image",
                "needs": [],
                "differentiable": False,
                "schema": SCHEMA,
                "card_hash": server.scorer.card_hash,
                "encodings": ["raw"],
            }
            self._answer(200, json.dumps(told).encode())

    def do_POST(self) -> None:
        """Score what was sent."""
        server = cast("RewardServer", self.server)
        if not self._admitted():
            return None
        length = self.headers.get("Content-Length", "")
        if self.path != "/v1/score":
            return self._refuse(404, "no such address; scores are given at /v1/score")
        if self.headers.get("Content-Type") != "application/octet-stream" or self.headers.get("Content-Encoding"):
            return self._refuse(415, "send a safetensors file as application/octet-stream, not packed")
        if not (length.isascii() and length.isdigit()):
            return self._refuse(411, "the request does not say how long it is")
        if len(length) > 12 or int(length) > LARGEST_REQUEST:
            return self._refuse(413, "the request is too long; send fewer pictures at once")
        try:
            media, header = read_request(self.rfile.read(int(length)))
        except ValueError as error:
            return self._refuse(400, str(error))
        tensors, errors = server.scorer.score(media, header)
        return self._answer(200, write_reply(tensors, errors, header, server.scorer.card_hash))

    def _known_host(self) -> bool:
        try:
            host = urlsplit("//" + self.headers.get("Host", "")).hostname
        except ValueError:
            host = None
        if cast("RewardServer", self.server).local and host not in LOOPBACK:
            self._refuse(421, "this server answers to names of its own machine")
            return False
        return True

    def _admitted(self) -> bool:
        token = cast("RewardServer", self.server).token
        given, expected = self.headers.get("Authorization", ""), f"Bearer {token}"
        if token and not hmac.compare_digest(given.encode("utf-8", "replace"), expected.encode()):
            self._refuse(401, "the token is missing or another one")
            return False
        return self._known_host()

    def _refuse(self, status: int, why: str) -> None:
        self.close_connection = True  # what is left of the request is not read
        self._answer(status, json.dumps({"error": why}).encode())

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
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 listens to other machines as well, with a token")
    parser.add_argument("--port", type=int, default=18085, help="0 takes a free one")
    parser.add_argument("--scorer", help="package.module:function")
    parser.add_argument("--identity", default="", help="a text that counts as part of the scorer, such as its versions")
    parser.add_argument("--random-weights", action="store_true", help="a small random model, to try the installation")
    options = parser.parse_args()
    token = os.environ.get("DIFALIGN_REWARD_TOKEN", "")
    if options.host not in LOOPBACK and not token:
        parser.error(f"--host {options.host} listens to other machines: set a token in DIFALIGN_REWARD_TOKEN")
    scorer = Scorer(options.scorer, identity=options.identity, random_weights=options.random_weights)
    with RewardServer((options.host, options.port), scorer, token=token) as server:
        print(f"serving http://{server.server_address[0]}:{server.server_address[1]}", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
