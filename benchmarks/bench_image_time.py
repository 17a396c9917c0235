"""Processor time of an image: 16 steps with guidance, decoded, through ``difalign.sample`` and through diffusers.

All sides make the same batch from the same noise and take turns; each encodes its prompts in every round. ``sample``
also turns pixels into PIL images. The aim is 40 ms an image at batch 64 on one thread.

diffusers is called twice: with the ``max_sequence_length`` of the model's card, where its images are those of
``difalign.sample`` (the largest difference is reported), and with its default of 256, which appends 256 tokens for an
encoder that the shipped model does not have. That call is slow, so it makes one image a prompt only.

    python -m benchmarks.bench_image_time --batch 64 --steps 16 --guidance 4
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from benchmarks import recorder, sd3_models, timing
from benchmarks.sd3_models import Loaded
from difalign.api import sample
from difalign.core.rng import row_seed

TARGET_MS = 40.0
DIFFUSERS_TOKENS = 256  # the default of StableDiffusion3Pipeline.__call__


def ours(loaded: Loaded, texts: list[str], *, samples_per_prompt: int, steps: int) -> Tensor:
    """Pixels [N, C, H, W] of ``difalign.sample`` with an empty prompt cache."""
    loaded.pipeline.clear_prompt_cache()
    count = len(texts) * samples_per_prompt
    made = sample(loaded.pipeline, texts, samples_per_prompt=samples_per_prompt, steps=steps, micro_batch=count)
    return made.pixels


def diffusers(loaded: Loaded, texts: list[str], *, samples_per_prompt: int, steps: int, tokens: int) -> Tensor:
    """Pixels [N, C, H, W] of ``pipe(...)`` from the same noise."""
    seeds = [row_seed(0, text, index, 0) for text in texts for index in range(samples_per_prompt)]
    return loaded.diffusers(
        texts,
        num_images_per_prompt=samples_per_prompt,
        num_inference_steps=steps,
        guidance_scale=loaded.pipeline.guidance_scale,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        output_type="pt",
        max_sequence_length=tokens,
    ).images


def measure(loaded: Loaded, texts: list[str], *, samples_per_prompt: int, steps: int, rounds: int) -> dict[str, object]:
    """Milliseconds of processor time an image, fastest round, of every side."""
    sides: dict[str, Callable[[], Tensor]] = {
        "difalign": partial(ours, loaded, texts, samples_per_prompt=samples_per_prompt, steps=steps),
        "diffusers": partial(
            diffusers, loaded, texts, samples_per_prompt=samples_per_prompt, steps=steps, tokens=loaded.tokens
        ),
        "diffusers_default": partial(
            diffusers, loaded, texts, samples_per_prompt=1, steps=steps, tokens=DIFFUSERS_TOKENS
        ),
    }
    mine, theirs = sides["difalign"](), sides["diffusers"]()  # also the warm-up
    seconds = timing.fastest(timing.alternate(sides, rounds=rounds))
    images = {"difalign": len(mine), "diffusers": len(theirs), "diffusers_default": len(texts)}
    an_image = {name: 1000 * seconds[name] / count for name, count in images.items()}
    return {
        "images": images,
        "cpu_ms_per_image": an_image,
        "target_ms": TARGET_MS,
        "ratio": an_image["difalign"] / an_image["diffusers"],
        "ratio_to_default": an_image["difalign"] / an_image["diffusers_default"],
        "max_abs_difference": float((mine - theirs).abs().max()),
    }


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = recorder.command_line(__doc__, rounds=3)
    parser.add_argument("--pipeline", default="tiny-sd3", help="a card's name, a diffusers folder, or 'random'")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--distinct", type=int, default=8, help="distinct prompts; a divisor of the batch")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--guidance", type=float, default=4.0)
    options = recorder.parse(parser, arguments)
    if options.distinct < 1 or options.batch % options.distinct:
        parser.error(f"--distinct {options.distinct} does not divide --batch {options.batch}")
    return options


def main(arguments: Sequence[str]) -> None:
    """Measure and print one JSON line."""
    options = parse(arguments)
    figures = measure(
        sd3_models.load(options.pipeline, guidance=options.guidance),
        sd3_models.prompts(options.distinct, distinct=options.distinct),
        samples_per_prompt=options.batch // options.distinct,
        steps=options.steps,
        rounds=options.rounds,
    )
    recorder.record("image_time", arguments, options=options, results=figures)


if __name__ == "__main__":
    main(sys.argv[1:])
