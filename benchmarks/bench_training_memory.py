"""Memory against time of one update: gradient checkpointing and bfloat16 autocast, alone and together.

A random SD3 transformer with adapters on its attention runs forward and backward on one micro-batch. Every variant has
a process of its own; memory is its peak above what weights and libraries took before the first forward (resident
memory on a CPU, allocated memory on CUDA), time is the fastest round. Ratios are to plain float32. The aim is at most
half of the memory with checkpointing; the price is about one forward more, a third of the time.

    python -m benchmarks.bench_training_memory --batch 4 --layers 8
    python -m benchmarks.bench_training_memory --device cuda --batch 8 --layers 24 --heads 24 --side 128
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

import torch

from benchmarks import recorder
from difalign.pipelines import lora
from difalign.pipelines.sd3 import LORA_TARGETS

TARGET = 0.5
VARIANTS: Mapping[str, tuple[bool, bool]] = {  # gradient checkpointing, autocast
    "float32": (False, False),
    "checkpointed": (True, False),
    "bfloat16": (False, True),
    "checkpointed_bfloat16": (True, True),
}
_HEAD = 64  # width of an attention head, as in SD3.5
_TEXT = 64  # tokens
_TEXT_WIDTH = 256


def run_variant(options: argparse.Namespace) -> dict[str, float]:
    """Peak megabytes above the start, and seconds of the fastest round, of one variant in this process."""
    from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel

    checkpointed, autocast = VARIANTS[options.variant]
    torch.manual_seed(0)
    width = _HEAD * options.heads
    network = SD3Transformer2DModel(
        sample_size=options.side,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=options.layers,
        attention_head_dim=_HEAD,
        num_attention_heads=options.heads,
        joint_attention_dim=_TEXT_WIDTH,
        caption_projection_dim=width,
        pooled_projection_dim=_TEXT_WIDTH,
        pos_embed_max_size=options.side // 2,
        qk_norm="rms_norm",
    ).to(options.device)
    network.requires_grad_(False)
    lora.attach(network, rank=32, alpha=64, targets=LORA_TARGETS, seed=0)
    if checkpointed:
        network.enable_gradient_checkpointing()
    x = torch.randn(options.batch, 16, options.side, options.side, device=options.device)
    text = torch.randn(options.batch, _TEXT, _TEXT_WIDTH, device=options.device)
    pooled = torch.randn(options.batch, _TEXT_WIDTH, device=options.device)
    level = torch.full((options.batch,), 500.0, device=options.device)
    before, seconds = _peak_megabytes(options.device), []
    for _ in range(options.rounds):
        begin = time.perf_counter()
        with torch.autocast(options.device, torch.bfloat16, enabled=autocast):
            predicted = network(x, encoder_hidden_states=text, pooled_projections=pooled, timestep=level).sample
        predicted.float().square().mean().backward()
        if options.device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    return {"megabytes": _peak_megabytes(options.device) - before, "seconds": min(seconds)}


def _peak_megabytes(device: str) -> float:
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def measure(arguments: Sequence[str]) -> dict[str, object]:
    """All variants, each in a fresh process, and their ratios to plain float32."""
    figures: dict[str, dict[str, float]] = {}
    for name in VARIANTS:
        command = [sys.executable, "-m", "benchmarks.bench_training_memory", *arguments, "--variant", name]
        figures[name] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    plain = figures["float32"]
    return {
        "ratio": {
            name: {quantity: value / plain[quantity] for quantity, value in of_one.items()}
            for name, of_one in figures.items()
        },
        "target_checkpointed_megabytes": TARGET,
        "measured": figures,
    }


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = recorder.command_line(__doc__, rounds=3)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--batch", type=int, default=4, help="rows of the micro-batch")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--heads", type=int, default=6, help="of 64 each; SD3.5 medium has 24")
    parser.add_argument("--side", type=int, default=32, help="of the latents; 128 for 1024 pixels")
    parser.add_argument("--variant", choices=tuple(VARIANTS), help="run this one here and print its figures only")
    return recorder.parse(parser, arguments)


def main(arguments: Sequence[str]) -> None:
    """Measure and print one JSON line."""
    options = parse(arguments)
    if options.variant:
        print(json.dumps(run_variant(options)))
        return
    recorder.record("training_memory", arguments, options=options, results=measure(arguments))


if __name__ == "__main__":
    main(sys.argv[1:])
