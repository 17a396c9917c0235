"""Time the noise-free walk through the SD3 adapter against diffusers' own call.

    python benchmarks/ode_loop.py --batch 64 --steps 16
    python benchmarks/ode_loop.py --pipeline random

Both sides run in one process on one set of weights, taking turns; the figures are medians of the ratios of
neighbouring runs, ours / diffusers, in CPU seconds, which a busy machine disturbs less than wall time. The aim is
1.02. One JSON line goes to stdout.

``difference_same_embeddings`` compares the images when diffusers is handed the adapter's prompt embeddings: 0 means
equal to the bit. ``difference_from_texts`` compares with the timed call, which encodes its list of prompts as one
batch where the adapter encodes each text alone; that moves embeddings, and so images, in the last place.

``ratio`` is what a user sees: diffusers encodes the prompts at every call, the adapter keeps their embeddings.
``ratio_cold`` empties the adapter's prompt cache before every run, so that both encode.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from difalign.pipelines.sd3 import SD3Pipeline
from difalign.process.flow import FlowProcess

ROOT = Path(__file__).resolve().parents[1]
RANDOM = "random"


def load(pipeline: str, guidance: float, tokens: int) -> SD3Pipeline:
    """The pipeline of a folder, or a random one."""
    if pipeline != RANDOM:
        return SD3Pipeline.from_pretrained(
            pipeline, process=FlowProcess(), guidance_scale=guidance, max_sequence_length=tokens, local_files_only=True
        )
    sys.path.insert(0, str(ROOT))  # the random pipeline is built by tests/tiny_models.py
    from tests.tiny_models import tiny_sd3

    return SD3Pipeline(tiny_sd3(), process=FlowProcess(), guidance_scale=guidance, max_sequence_length=tokens)


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


def diffusers(pipeline: SD3Pipeline, prompts: list[str], steps: int, tokens: int) -> Tensor:
    """``pipe(...)`` on the same modules."""
    pipe: Any = pipeline.diffusers_pipeline
    return pipe(
        prompts,
        num_inference_steps=steps,
        guidance_scale=pipeline.guidance_scale,
        generator=generators(len(prompts)),
        output_type="pt",
        max_sequence_length=tokens,
    ).images


@torch.no_grad()
def diffusers_from_embeddings(pipeline: SD3Pipeline, prompts: list[str], steps: int) -> Tensor:
    """``pipe(...)`` on the embeddings that the adapter made."""
    pipe: Any = pipeline.diffusers_pipeline
    condition = pipeline.encode(prompts)
    embeds, pooled = condition.conditional()
    return pipe(
        prompt_embeds=embeds,
        pooled_prompt_embeds=pooled,
        negative_prompt_embeds=condition.negative_embeds.expand_as(embeds),
        negative_pooled_prompt_embeds=condition.negative_pooled.expand_as(pooled),
        num_inference_steps=steps,
        guidance_scale=pipeline.guidance_scale,
        generator=generators(len(prompts)),
        output_type="pt",
    ).images


def seconds(run: Callable[[], Tensor]) -> float:
    """CPU time of one run."""
    start = time.process_time()
    run()
    return time.process_time() - start


def measure(pipeline: SD3Pipeline, prompts: list[str], *, steps: int, tokens: int, repeats: int) -> dict[str, float]:
    """Ratios, seconds and the largest difference between the images of both sides."""
    mine = ours(pipeline, prompts, steps)  # these three also warm up
    same = (mine - diffusers_from_embeddings(pipeline, prompts, steps)).abs().max()
    texts = (mine - diffusers(pipeline, prompts, steps, tokens)).abs().max()
    theirs, warm, cold = [], [], []
    for _ in range(repeats):
        warm.append(seconds(lambda: ours(pipeline, prompts, steps)))
        theirs.append(seconds(lambda: diffusers(pipeline, prompts, steps, tokens)))
        pipeline.clear_prompt_cache()
        cold.append(seconds(lambda: ours(pipeline, prompts, steps)))
    return {
        "ratio": statistics.median(a / b for a, b in zip(warm, theirs, strict=True)),
        "ratio_cold": statistics.median(a / b for a, b in zip(cold, theirs, strict=True)),
        "cpu_seconds_ours": statistics.median(warm),
        "cpu_seconds_diffusers": statistics.median(theirs),
        "difference_same_embeddings": float(same),
        "difference_from_texts": float(texts),
    }


def main() -> None:
    """Measure and print one JSON line."""
    import diffusers as library

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pipeline", default=str(ROOT / "pipelines" / "tiny-sd3"), help="a folder, or 'random'")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--distinct", type=int, default=4, help="distinct prompts in the batch")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--guidance", type=float, default=4.5)
    parser.add_argument("--max-sequence-length", type=int, default=1, help="T5 tokens; 1 is tiny-sd3's")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    colours, shapes = ("red", "green", "blue", "yellow"), ("circle", "square", "cross", "triangle")
    texts = [f"a {colour} {shape}" for shape in shapes for colour in colours][: options.distinct]
    prompts = [texts[i % len(texts)] for i in range(options.batch)]
    pipeline = load(options.pipeline, options.guidance, options.max_sequence_length)
    pipeline.diffusers_pipeline.set_progress_bar_config(disable=True)
    figures = measure(
        pipeline, prompts, steps=options.steps, tokens=options.max_sequence_length, repeats=options.repeats
    )
    result = {
        "benchmark": "ode_loop",
        "command": shlex.join(["python", "benchmarks/ode_loop.py", *sys.argv[1:]]),
        **vars(options),
        "pipeline": Path(options.pipeline).name,
        **{name: float(f"{value:.4g}") for name, value in figures.items()},
        "machine": {"processor": platform.processor() or platform.machine(), "system": platform.system()},
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "diffusers": library.__version__},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
