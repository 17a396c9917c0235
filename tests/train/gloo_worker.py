"""One process of several that run the toy together over gloo; its job is its argument, its place the environment.

A job names the folder and the sections of the configuration. It may name a process that gets a signal, one that is
killed, and the prompts that a reward can tell apart; and it may ask for a list of all exchanges.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed

from difalign.core.errors import ProcessLost
from difalign.core.protocols import RewardModel
from difalign.core.types import Metadata, RewardOutput
from difalign.train.interrupt import Interrupted
from difalign.train.runtime import Runtime
from tests.train.killable_worker import Kill, lie_in_wait
from tests.train.small_runs import Brightness, run_toy, toy_run_config

LOST = 1  # exit code, as of the command line
EXCHANGES = ("all_reduce", "all_gather_object", "broadcast_object_list", "barrier", "broadcast", "all_gather")


@dataclass(frozen=True)
class Patchy(Brightness):
    """Tells samples of some prompts apart and no others: their groups teach nothing."""

    known: tuple[str, ...] = ()

    def score(
        self, media: Tensor, prompts: Sequence[str], *, metadata: Metadata | None = None, sigma: float | None = None
    ) -> RewardOutput:
        scores = super().score(media, prompts, metadata=metadata, sigma=sigma).scores
        kept = torch.tensor([text in self.known for text in prompts])
        return RewardOutput(torch.where(kept, scores, torch.full_like(scores, 0.5)))


def job(folder: Path, sections: dict[str, Any], **more: Any) -> list[str]:
    """The arguments of ``python`` for a job; a ``kill`` comes with the rank that it is for."""
    if "kill" in more:
        rank, kill = more["kill"]
        more["kill"] = {"rank": rank, **asdict(kill)}
    return ["-m", "tests.train.gloo_worker", json.dumps({"folder": str(folder), "sections": sections, **more})]


def note_exchanges() -> list[str]:
    """A list that fills with the name of every collective, and of every backward pass, of this process."""
    seen: list[str] = []

    def noted(owner: Any, name: str) -> None:
        function: Callable[..., Any] = getattr(owner, name)

        @functools.wraps(function)
        def call(*arguments: Any, **options: Any) -> Any:
            seen.append(name)
            return function(*arguments, **options)

        setattr(owner, name, call)

    for name in EXCHANGES:
        noted(distributed, name)
    noted(Runtime, "backward")
    return seen


def reward_of(message: dict[str, Any], rank: int) -> RewardModel:
    """The reward that the job asks of this process."""
    from tests.train.test_resume import Signalled

    if "known" in message:
        return Patchy(known=tuple(message["known"]))
    if message.get("signal") is not None and message["signal"]["rank"] == rank:
        return Signalled(at=message["signal"]["at"], signum=signal.SIGTERM)
    return Brightness()


def main() -> None:
    """Run the job."""
    torch.set_num_threads(1)
    message, rank = json.loads(sys.argv[1]), int(os.environ["RANK"])
    if message.get("kill") is not None and message["kill"].pop("rank") == rank:
        lie_in_wait(Kill(**message["kill"]))
    seen = note_exchanges() if message.get("noted") else []
    try:
        run_toy(toy_run_config(Path(message["folder"]), **message["sections"]), reward=reward_of(message, rank))
    except Interrupted as stop:
        raise SystemExit(stop.exit_code) from None
    except ProcessLost as lost:
        sys.stderr.write(f"error: {lost}\n")
        raise SystemExit(LOST) from None
    if message.get("noted"):
        Path(f"{message['folder']}.{rank}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main()
