"""Memory of stored trajectories at the size of a real model, and what the published loops keep for the same samples.

The rollout engine walks latents of SD3.5's shape with a network that costs nothing, in float16. Ours is what it leaves
behind: the recorded edges with their indices, the leaves, and one embedding a distinct prompt. ``published`` is what
the released Flow-GRPO trainer holds until its update: every latent twice, as start and as end of a step, log-probs,
timesteps, and the embeddings of every sample, which are the larger half. Bytes of tensors, counted; ``peak_ratio`` is
the growth of resident memory while the engine walked, divided by the bytes it left. The aim is a ratio of 0.6.

On CUDA the walk is repeated with the edges in main memory, and ``offloaded_ratio`` is its peak of allocated memory to
that of the first.

    python -m benchmarks.bench_trajectory_memory
    python -m benchmarks.bench_trajectory_memory --device cuda --prompts 32
"""

from __future__ import annotations

import argparse
import resource
import sys
from collections.abc import Sequence
from dataclasses import fields

import torch
from torch import Tensor

from benchmarks import recorder
from difalign.core.types import Trajectories
from difalign.rollout.engine import rollout
from difalign.rollout.plans import plain
from tests.toys import ElementwisePolicy, ToyPipeline

TARGET = 0.6
TOKENS, WIDTH, POOLED = 333, 4096, 2048  # SD3.5's text: 77 of both CLIPs, 256 of T5
BYTES = 2  # of float16


def walk(options: argparse.Namespace, *, storage_device: str | None = None) -> Trajectories:
    """One rollout of ``--prompts`` times ``--samples`` latents."""
    pipeline = ToyPipeline(
        network=ElementwisePolicy().to(options.device),
        latent=(16, options.side, options.side),
        device=torch.device(options.device),
    )
    rows = options.prompts * options.samples
    return rollout(
        pipeline,
        (plain(options.steps, 0.7),),
        condition=pipeline.encode(["0.0"] * options.prompts),
        prompt_index=torch.arange(options.prompts).repeat_interleave(options.samples),
        root_seeds=range(rows),
        micro_batch=8,
        storage_dtype=torch.float16,
        storage_device=storage_device,
    )


def kept_bytes(trajectories: Trajectories, *, prompts: int) -> int:
    """Bytes of a rollout's tensors and of its prompts' embeddings."""
    values = (getattr(trajectories, field.name) for field in fields(trajectories))
    tensors = sum(value.numel() * value.element_size() for value in values if isinstance(value, Tensor))
    return tensors + prompts * (TOKENS * WIDTH + POOLED) * BYTES


def published_bytes(options: argparse.Namespace) -> int:
    """Bytes that the published trainer holds for as many samples of as many steps."""
    latent = 16 * options.side**2
    of_sample = 2 * options.steps * latent + TOKENS * WIDTH + POOLED
    numbers = 4 * options.steps + 8 * options.steps  # log-probs in float32, timesteps in int64
    return options.prompts * options.samples * (of_sample * BYTES + numbers)


def measure(options: argparse.Namespace) -> dict[str, object]:
    """Megabytes of ours and theirs, their ratio, and the peak."""
    before = _peak(options.device)
    trajectories = walk(options)
    peak = _peak(options.device) - before
    samples = options.prompts * options.samples
    ours, theirs = kept_bytes(trajectories, prompts=options.prompts), published_bytes(options)
    left = ours - options.prompts * (TOKENS * WIDTH + POOLED) * BYTES
    figures: dict[str, object] = {
        "ratio": ours / theirs,
        "target": TARGET,
        "megabytes_a_sample": {"ours": ours / samples / 1e6, "published": theirs / samples / 1e6},
        "peak_ratio": peak / left,
        "samples": samples,
    }
    if options.device == "cuda":
        del trajectories
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        walk(options, storage_device="cpu")
        figures["offloaded_ratio"] = (_peak(options.device) - before) / peak
    return figures


def _peak(device: str) -> int:
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = recorder.command_line(__doc__, rounds=1)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--samples", type=int, default=12, help="a prompt")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--side", type=int, default=64, help="of the latents: 64 for 512 pixels")
    return recorder.parse(parser, arguments)


def main(arguments: Sequence[str]) -> None:
    """Measure and print one JSON line."""
    options = parse(arguments)
    recorder.record("trajectory_memory", arguments, options=options, results=measure(options))


if __name__ == "__main__":
    main(sys.argv[1:])
