"""The noise-free walk through the SD3 adapter against diffusers' own call: the same images, in CPU seconds.

Both sides run in one process on one set of weights and take turns; the figures are the fastest rounds and their
ratios, ours / diffusers. The aim is 1.02.

``ratio`` is what a user sees: diffusers encodes the prompts at every call, the adapter keeps their embeddings.
``ratio_cold`` empties the adapter's prompt cache before every round, so that both encode.

``difference_same_embeddings`` compares the images when diffusers is handed the adapter's prompt embeddings: 0 means
equal to the bit. ``difference_from_texts`` compares with the timed call, which encodes its list of prompts as one
batch where the adapter encodes each text alone; that moves embeddings, and so images, in the last place.

    python -m benchmarks.bench_ode_loop --batch 64 --steps 16
    python -m benchmarks.bench_ode_loop --pipeline random
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks import recorder, sd3_models, timing
from benchmarks.sd3_models import Loaded
from difalign.pipelines.sd3 import SD3Pipeline


def generators(count: int) -> list[torch.Generator]:
    """Seeds 0 to count - 1."""
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


@torch.no_grad()
def ours(pipeline: SD3Pipeline, prompts: list[str], steps: int) -> Tensor:
    """The walk as the library takes it: the process's step at noise level 0."""
    condition, grid = pipeline.encode(prompts), pipeline.grid(steps)
    x = pipeline.initial_latents(generators(len(prompts)))
    for i in range(steps):
        v = pipeline.predict(x, grid.model_time[i].expand(x.shape[0]), condition)
        x = pipeline.process.transition(x, v, grid, i, 0.0).mean
    return pipeline.decode(x)


def ours_cold(pipeline: SD3Pipeline, prompts: list[str], steps: int) -> Tensor:
    """The same with an empty prompt cache."""
    pipeline.clear_prompt_cache()
    return ours(pipeline, prompts, steps)


def diffusers(loaded: Loaded, prompts: list[str], steps: int) -> Tensor:
    """``pipe(...)`` on the same modules."""
    return loaded.diffusers(
        prompts,
        num_inference_steps=steps,
        guidance_scale=loaded.pipeline.guidance_scale,
        generator=generators(len(prompts)),
        output_type="pt",
        max_sequence_length=loaded.tokens,
    ).images


@torch.no_grad()
def diffusers_from_embeddings(loaded: Loaded, prompts: list[str], steps: int) -> Tensor:
    """``pipe(...)`` on the embeddings that the adapter made."""
    condition = loaded.pipeline.encode(prompts)
    embeds, pooled = condition.conditional()
    return loaded.diffusers(
        prompt_embeds=embeds,
        pooled_prompt_embeds=pooled,
        negative_prompt_embeds=condition.negative[0].expand_as(embeds),
        negative_pooled_prompt_embeds=condition.negative[1].expand_as(pooled),
        num_inference_steps=steps,
        guidance_scale=loaded.pipeline.guidance_scale,
        generator=generators(len(prompts)),
        output_type="pt",
    ).images


def measure(loaded: Loaded, prompts: list[str], *, steps: int, rounds: int) -> dict[str, float]:
    """Ratios, seconds and the largest difference between the images of both sides."""
    pipeline = loaded.pipeline
    mine = ours(pipeline, prompts, steps)  # these three also warm up
    same = (mine - diffusers_from_embeddings(loaded, prompts, steps)).abs().max()
    texts = (mine - diffusers(loaded, prompts, steps)).abs().max()
    seconds = timing.fastest(
        timing.alternate(
            {
                "ours": lambda: ours(pipeline, prompts, steps),
                "diffusers": lambda: diffusers(loaded, prompts, steps),
                "ours_cold": lambda: ours_cold(pipeline, prompts, steps),
            },
            rounds=rounds,
        )
    )
    return {
        "ratio": seconds["ours"] / seconds["diffusers"],
        "ratio_cold": seconds["ours_cold"] / seconds["diffusers"],
        **{f"cpu_seconds_{name}": value for name, value in seconds.items()},
        "difference_same_embeddings": float(same),
        "difference_from_texts": float(texts),
    }


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = recorder.command_line(__doc__, rounds=5)
    parser.add_argument("--pipeline", default="tiny-sd3", help="a card's name, a diffusers folder, or 'random'")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--distinct", type=int, default=4, help="distinct prompts in the batch")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--guidance", type=float, help="default: the card's")
    return recorder.parse(parser, arguments)


def main(arguments: Sequence[str]) -> None:
    """Measure and print one JSON line."""
    options = parse(arguments)
    figures = measure(
        sd3_models.load(options.pipeline, guidance=options.guidance),
        sd3_models.prompts(options.batch, distinct=options.distinct),
        steps=options.steps,
        rounds=options.rounds,
    )
    recorder.record("ode_loop", arguments, options=options, results=figures)


if __name__ == "__main__":
    main(sys.argv[1:])
