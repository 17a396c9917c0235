"""A server in a thread that answers as a test says, and remembers what it was asked."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
from torch import Tensor

from difalign.core.types import RewardOutput
from difalign.reward_models.score_messages import ScoreReply
from difalign.reward_models.tensor_message import TensorMessage

HASH = "a" * 64
Answer = tuple[int, bytes] | Callable[[TensorMessage], tuple[int, bytes]]  # status and body


@dataclass
class Answers:
    """What to answer to one POST after the other, the last one again and again."""

    queue: list[Answer]
    info: tuple[int, bytes]
    asked: list[TensorMessage] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    extra: dict[str, str] = field(default_factory=dict)  # headers of every answer
    trickle: float = 0.0  # seconds before each byte of an answer
    url: str = ""


@contextmanager
def answering(*queue: Answer, card_hash: str = HASH, info: int = 200, port: int = 0) -> Iterator[Answers]:
    """Serve ``queue`` on a free port."""
    answers = Answers(list(queue), (info, json.dumps({"card_hash": card_hash}).encode()))
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(*answers.info)

        def do_POST(self) -> None:
            message = TensorMessage.from_bytes(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                answers.asked.append(message)
                answers.headers.append(dict(self.headers))
                answer = answers.queue.pop(0) if len(answers.queue) > 1 else answers.queue[0]
            self.answer(*(answer(message) if callable(answer) else answer))

        def answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            if status == 302:
                self.send_header("Location", "/elsewhere")
            for name, value in answers.extra.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            try:
                for at in range(0, len(body), 1 if answers.trickle else len(body)):
                    time.sleep(answers.trickle)
                    self.wfile.write(body[at : at + 1] if answers.trickle else body)
            except OSError:
                self.close_connection = True  # the client has gone

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()  # it ends as soon as told
        answers.url = f"http://127.0.0.1:{server.server_address[1]}"
        yield answers
        server.shutdown()


def reply(output: RewardOutput, *, card_hash: str = HASH) -> Answer:
    """An answer to whatever is asked."""

    def answer(message: TensorMessage) -> tuple[int, bytes]:
        return 200, ScoreReply(output, str(message.header["request_id"]), card_hash).to_bytes()

    return answer


def scores(*values: float, card_hash: str = HASH, **components: Tensor) -> Answer:
    """A good answer."""
    return reply(RewardOutput(torch.tensor(values, dtype=torch.float32), components), card_hash=card_hash)
