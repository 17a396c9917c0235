"""Pictures a second of every scorer that runs without a download, by batch size, and what knowing prompts saves.

Cards are loaded as they are; of architectures whose weights must be fetched, random ones are made, small unless
``--real-size`` is given (``random_weights`` marks them). ``images_per_second`` scores ``batch`` pictures of a few
prompts that have been seen before, as in all rollouts but the first. The naive ways are those of published trainers:
``new_text_batched`` reads a text for every picture, and ``new_text_one_by_one`` also scores pictures one at a time. A
gain is the naive way's time divided by ours, at the largest batch that fits into ``--limit`` seconds.

    python -m benchmarks.bench_rewards --limit 20
    python -m benchmarks.bench_rewards --scorers imagereward --real-size --batches 1 8
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

import difalign
from benchmarks import random_scorers, recorder
from benchmarks.random_scorers import PROMPTS
from benchmarks.timing import Clock, alternate, fastest

if TYPE_CHECKING:
    from difalign.core.protocols import RewardModel

CARDS = ("verifier", "tiny-clip", "compressibility", "ocr", "image-class")
_CAPTIONS = ("a red circle", "two blue squares", "a green cross at the left", "a red circle and a white square")


@dataclass(frozen=True, slots=True)
class Scorer:
    """A reward with the pictures and prompts that suit it."""

    reward: RewardModel
    side: int  # pixels
    known: tuple[str, ...]  # prompts
    renewable: bool  # whether any other prompt is one, so that texts can be new
    random_weights: bool


def load(name: str, *, side: int, real_size: bool, device: str) -> Scorer:
    """A scorer by its card's name, or by that of an architecture."""
    if name in random_scorers.MAKERS:
        reward = random_scorers.make(name, real_size=real_size)
        move = getattr(reward, "to", None)
        if callable(move):
            move(device)
        return Scorer(reward, side, PROMPTS, True, True)
    reward = difalign.load_reward(name, device=device)
    if name in ("verifier", "tiny-clip"):
        return Scorer(reward, 36, _CAPTIONS, name == "tiny-clip", False)
    known = tuple(f'{prompt} with the word "OPEN"' for prompt in PROMPTS) if name == "ocr" else PROMPTS
    return Scorer(reward, side, known, False, False)


@torch.no_grad()
def measure(
    scorer: Scorer, *, batches: Sequence[int], rounds: int, limit: float, device: str, clock: Clock
) -> dict[str, object]:
    """Pictures a second by batch size, and gains over the naive ways where texts are read by a network."""
    fresh = (f"{PROMPTS[number % len(PROMPTS)]}, number {number}" for number in itertools.count())
    speeds: dict[str, float] = {}
    second = 0.0  # that one picture takes, as far as is known
    largest = 0
    for batch in batches:
        if second * batch * (rounds + 1) > limit:
            continue
        media, prompts = _pictures(scorer, batch, device), _spread(scorer.known, batch)
        score = _scoring(scorer.reward, media, prompts)
        score()
        seconds = fastest(alternate({"known": score}, rounds=rounds, clock=clock))["known"]
        second, largest = seconds / batch, batch
        speeds[str(batch)] = 1.0 / second
    figures: dict[str, object] = {"images_per_second": speeds, "side": scorer.side}
    if scorer.random_weights:
        figures["random_weights"] = True
    if not scorer.renewable or not largest:
        return figures
    media = _pictures(scorer, largest, device)

    def batched() -> None:
        scorer.reward.score(media, [next(fresh) for _ in range(largest)])

    def one_by_one() -> None:
        for picture in media:
            scorer.reward.score(picture[None], [next(fresh)])

    known = _scoring(scorer.reward, media, _spread(scorer.known, largest))
    ways = {"known": known, "new_text_batched": batched, "new_text_one_by_one": one_by_one}
    if getattr(scorer.reward, "groupwise", False):
        ways.pop("new_text_one_by_one")  # a picture without others has no score
    seconds = fastest(alternate(ways, rounds=rounds, clock=clock))
    return figures | {
        "gain": {way: seconds[way] / seconds["known"] for way in ways if way != "known"},
        "gain_batch": largest,
    }


def _pictures(scorer: Scorer, count: int, device: str) -> Tensor:
    """Smooth random pictures, [N, 3, side, side] in [0, 1]."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 12, 12, generator=generator)
    return torch.nn.functional.interpolate(coarse, size=(scorer.side, scorer.side), mode="bilinear").to(device)


def _spread(prompts: Sequence[str], count: int) -> list[str]:
    return [prompts[row * len(prompts) // count] for row in range(count)]


def _scoring(reward: RewardModel, media: Tensor, prompts: Sequence[str]) -> Callable[[], object]:
    def score() -> None:
        reward.score(media, prompts).scores.cpu()  # the copy waits for a GPU

    return score


def _clock(device: str) -> Clock:
    """Processor seconds on a CPU, seconds of the wall on a GPU, whose work a processor's clock does not see."""
    return time.process_time if device == "cpu" else time.perf_counter


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    known = (*CARDS, *random_scorers.MAKERS)
    parser = recorder.command_line(__doc__, rounds=3)
    parser.add_argument("--scorers", nargs="+", choices=known, default=list(known), metavar="S")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 64], metavar="N")
    parser.add_argument("--side", type=int, default=512, help="pixels a side, but of the scenes' scorers")
    parser.add_argument(
        "--limit", type=float, default=60.0, help="seconds for one batch size; larger ones are left out"
    )
    parser.add_argument("--real-size", action="store_true", help="random weights at the published sizes")
    parser.add_argument("--device", default="cpu")
    return recorder.parse(parser, arguments)


def main(arguments: Sequence[str]) -> None:
    """Measure and print one JSON line."""
    options = parse(arguments)
    figures = {}
    for name in options.scorers:
        scorer = load(name, side=options.side, real_size=options.real_size, device=options.device)
        figures[name] = measure(
            scorer,
            batches=sorted(options.batches),
            rounds=options.rounds,
            limit=options.limit,
            device=options.device,
            clock=_clock(options.device),
        )
    recorder.record("rewards", arguments, options=options, results={"scorers": figures})


if __name__ == "__main__":
    main(sys.argv[1:])
