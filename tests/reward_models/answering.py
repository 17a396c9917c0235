"""A server in a thread that answers as a test says, and remembers what it was asked."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
from torch import Tensor

from difalign.reward_models.tensor_message import TensorMessage


@dataclass
class Answers:
    """What to answer to one POST after the other, the last one again and again; (status, body)."""

    queue: list[tuple[int, bytes]]
    asked: list[TensorMessage] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    url: str = ""


@contextmanager
def answering(*queue: tuple[int, bytes], host: str = "127.0.0.1") -> Iterator[Answers]:
    """Serve ``queue`` on a free port."""
    answers = Answers(list(queue))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(405, b"POST only")

        def do_POST(self) -> None:
            answers.asked.append(TensorMessage.from_bytes(self.rfile.read(int(self.headers["Content-Length"]))))
            answers.headers.append(dict(self.headers))
            self.answer(*(answers.queue.pop(0) if len(answers.queue) > 1 else answers.queue[0]))

        def answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            if status == 302:
                self.send_header("Location", "/elsewhere")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer((host, 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()  # it ends as soon as told
        answers.url = f"http://{host}:{server.server_address[1]}/score"
        yield answers
        server.shutdown()


def scores(*values: float, **components: Tensor) -> tuple[int, bytes]:
    """A good answer."""
    tensors = {"scores": torch.tensor(values, dtype=torch.float32), **components}
    return 200, TensorMessage(tensors, {}).to_bytes()
