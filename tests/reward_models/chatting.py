"""An OpenAI-compatible server in a thread that answers as a test says, and remembers what it was asked."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = tuple[int, bytes]
Answering = Callable[[dict[str, Any]], Answer]


@dataclass
class Chat:
    """What was asked, in the order of arrival, and how many questions were open at a time at most."""

    url: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    most_open: int = 0


def said(text: str, **logprobs: float) -> Answer:
    """A chat completion; with the log-probabilities of its first token's candidates, if any are given."""
    choice: dict[str, Any] = {"index": 0, "message": {"role": "assistant", "content": text}}
    if logprobs:
        candidates = [{"token": token, "logprob": value} for token, value in logprobs.items()]
        choice["logprobs"] = {"content": [{"token": text, "top_logprobs": candidates}]}
    return 200, json.dumps({"object": "chat.completion", "choices": [choice]}).encode()


def text_of(asked: dict[str, Any]) -> str:
    return asked["messages"][0]["content"][1]["text"]


def in_turn(*answers: Answer) -> Answering:
    """One answer after the other, the last one again and again."""
    queue = list(answers)
    return lambda asked: queue.pop(0) if len(queue) > 1 else queue[0]


@contextmanager
def chatting(answer: Answering, *, seconds: float = 0.0) -> Iterator[Chat]:
    """Serve on a free port, ``seconds`` late."""
    chat, lock, open_now = Chat(), threading.Lock(), [0]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply(200, b"{}")

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                chat.asked.append(asked)
                chat.headers.append({**self.headers, "path": self.path})
                open_now[0] += 1
                chat.most_open = max(chat.most_open, open_now[0])
                status, body = answer(asked)
            time.sleep(seconds)
            with lock:
                open_now[0] -= 1
            self.reply(status, body)

        def reply(self, status: int, body: bytes) -> None:
            try:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
            except OSError:
                self.close_connection = True  # the client has given up

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        chat.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        yield chat
        server.shutdown()
