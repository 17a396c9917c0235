"""A reward that takes its time, for a server in another process."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from difalign.core.types import Metadata, RewardOutput

CARD = """
name: slow
summary: mean red less mean blue, after a while
target: tests.server.slow:Slow
licence: Apache-2.0
options:
  pause: 0.0
  gain: 1.0
"""


@dataclass(frozen=True)
class Slow:
    """Mean red less mean blue, times ``gain``, after ``pause`` seconds a call."""

    pause: float = 0.0
    gain: float = 1.0
    name: str = "slow"
    differentiable: bool = False

    def score(
        self, media: Tensor, prompts: Sequence[str], *, metadata: Metadata | None = None, sigma: float | None = None
    ) -> RewardOutput:
        time.sleep(self.pause)
        red, blue = media[:, 0].flatten(1).mean(dim=1), media[:, 2].flatten(1).mean(dim=1)
        return RewardOutput(self.gain * (red - blue), {"red": red})


def write_card(folder: Path) -> Path:
    """The file of a card that names the reward."""
    file = folder / "slow.yaml"
    file.write_text(CARD)
    return file
