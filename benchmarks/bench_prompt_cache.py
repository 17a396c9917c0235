"""Encoding the prompts of a rollout: with embeddings kept by text, and with every row encoded anew in every rollout.

A run draws its prompts from one file again and again, ``--samples`` rows of each, and the published scripts encode the
batch that they are about to sample. ``cached`` is our pipeline after the first rollout, ``first`` is the first one,
which encodes each distinct text once and alone, and ``every_row`` is diffusers' ``encode_prompt`` on all rows. Shares
are of the whole rollout: the noise-free walk of the same rows, without decoding. The aim is that prompts cost nothing
(0.01 of the rollout) once they are known.

    python -m benchmarks.bench_prompt_cache --distinct 8 --samples 12
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

import torch

from benchmarks import recorder, sd3_models
from benchmarks.sd3_models import Loaded
from benchmarks.timing import alternate, fastest
from difalign.rollout.engine import rollout
from difalign.rollout.plans import deterministic

TARGET = 0.01


@torch.no_grad()
def measure(loaded: Loaded, texts: list[str], *, samples: int, steps: int, rounds: int) -> dict[str, object]:
    """Processor seconds of every way to encode, and of a rollout, fastest round."""
    pipeline, rows = loaded.pipeline, len(texts) * samples
    every_row = [text for text in texts for _ in range(samples)]

    def first() -> None:
        pipeline.clear_prompt_cache()
        pipeline.encode(texts)

    def every() -> None:
        loaded.diffusers.encode_prompt(
            prompt=every_row,
            prompt_2=None,
            prompt_3=None,
            do_classifier_free_guidance=pipeline.guidance_scale > 1,
            max_sequence_length=loaded.tokens,
        )

    def walk() -> None:
        rollout(
            pipeline,
            (deterministic(steps),),
            condition=pipeline.encode(texts),
            prompt_index=torch.arange(len(texts)).repeat_interleave(samples),
            root_seeds=range(rows),
            micro_batch=rows,
        )

    sides: dict[str, Callable[[], object]] = {
        "every_row": every,
        "first": first,
        "cached": lambda: pipeline.encode(texts),
        "rollout": walk,
    }
    seconds = fastest(alternate(sides, rounds=rounds))
    return {
        "share_of_rollout": {name: seconds[name] / seconds["rollout"] for name in ("every_row", "first", "cached")},
        "target_cached": TARGET,
        "ratio_cached_to_every_row": seconds["cached"] / seconds["every_row"],
        "cpu_seconds": seconds,
        "rows": rows,
    }


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = recorder.command_line(__doc__, rounds=5)
    parser.add_argument("--pipeline", default="tiny-sd3", help="a card's name, a diffusers folder, or 'random'")
    parser.add_argument("--distinct", type=int, default=8, help="prompts of a rollout")
    parser.add_argument("--samples", type=int, default=12, help="rows a prompt")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--guidance", type=float, default=4.0)
    return recorder.parse(parser, arguments)


def main(arguments: Sequence[str]) -> None:
    """Measure and print one JSON line."""
    options = parse(arguments)
    figures = measure(
        sd3_models.load(options.pipeline, guidance=options.guidance),
        sd3_models.prompts(options.distinct, distinct=options.distinct),
        samples=options.samples,
        steps=options.steps,
        rounds=options.rounds,
    )
    recorder.record("prompt_cache", arguments, options=options, results=figures)


if __name__ == "__main__":
    main(sys.argv[1:])
