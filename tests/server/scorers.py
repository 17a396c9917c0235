"""Rewards that a test can follow, and an application around them without a socket."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from fastapi.testclient import TestClient
from torch import Tensor

from difalign.core.protocols import RewardModel
from difalign.core.types import RewardOutput
from difalign.reward_models.score_messages import ScoreRequest
from difalign.server.app import ServedReward, ServerLimits, create_app

URL = "http://127.0.0.1"
HASH = "f" * 64
BODY = {"Content-Type": "application/octet-stream"}


@dataclass
class Watched:
    """The mean pixel plus the length of the prompt; remembers the sizes of its batches and who overlapped.

    A prompt ``fail`` raises, ``nan`` scores NaN, ``slow`` takes a while.
    """

    groupwise: bool = False
    pause: float = 0.0  # seconds a call
    name: str = "watched"
    differentiable: bool = False
    batches: list[int] = field(default_factory=list)
    metadata: list[object] = field(default_factory=list)
    overlapped: bool = False
    _busy: threading.Lock = field(default_factory=threading.Lock)

    def score(
        self,
        media: Tensor,
        prompts: Sequence[str],
        *,
        metadata: Sequence[Mapping[str, object]] | None = None,
        sigma: float | None = None,
    ) -> RewardOutput:
        self.overlapped |= not self._busy.acquire(blocking=False)
        try:
            self.batches.append(len(prompts))
            self.metadata.append(metadata)
            time.sleep(self.pause)
            if "fail" in prompts:
                raise KeyError("a secret of the scorer")
            mean = media.flatten(1).mean(dim=1)
            scores = mean + torch.tensor([float("nan") if p == "nan" else float(len(p)) for p in prompts])
            return RewardOutput(scores, {"mean": mean})
        finally:
            if self._busy.locked():
                self._busy.release()


def request(*prompts: str, size: int = 4, seed: int = 0, **more: object) -> ScoreRequest:
    """A request of random pictures."""
    generator = torch.Generator().manual_seed(seed)
    media = torch.randint(0, 256, (len(prompts), 3, size, size), generator=generator, dtype=torch.uint8)
    return ScoreRequest(media, prompts, **more)


@contextmanager
def asking(
    model: RewardModel | None = None,
    *,
    token: str = "",
    limits: ServerLimits | None = None,
    needs: Sequence[str] = (),
    base_url: str = URL,
) -> Iterator[TestClient]:
    """A client of an application in this process."""
    served = ServedReward(Watched() if model is None else model, card_hash=HASH, needs=needs)
    app = create_app(served, token=token, limits=limits)
    with TestClient(app, base_url=base_url, raise_server_exceptions=False) as client:
        yield client
