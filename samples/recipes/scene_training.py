"""What the recipes of the shipped text-to-image models share: data, sampling with guidance, scores along the way.

A recipe says what its model is, what it loses on a batch, how it samples and how it is saved. The rest is here, scenes
drawn and encoded once and verifier scores along the way, and in ``training_loop``.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from diffusers import AutoencoderKL
from PIL import Image
from scene_data import draw_images, draw_specs, framed, training_specs
from tiny_text import token_ids
from torch import Tensor
from training_loop import Schedule, State, optimise, start_processes

from difalign.embedded.scenes import KINDS, SIZE, Kind, all_specs, is_held_out
from difalign.embedded.verifier import verify

DOWNSCALE = 2  # pixels a side of a latent
CHANNELS = 2
CAPTION_DROPOUT = 0.1


@dataclass(frozen=True, slots=True)
class Data:
    """Encoded training scenes."""

    latents: np.memmap  # [N, CHANNELS, side, side] float16, posterior means
    ids: Tensor  # [N, tokens] int64

    def draw_rows(self, batch: int, generator: torch.Generator) -> Tensor:
        """Random rows of a batch, [batch] int64."""
        return torch.randint(len(self.ids), (batch,), generator=generator)

    def clean(self, rows: Tensor) -> Tensor:
        """Their latents, [batch, CHANNELS, side, side] float32."""
        return torch.from_numpy(self.latents[rows.numpy()].astype(np.float32))


class Sample(Protocol):
    """How a model samples latents from token ids."""

    def __call__(self, model: Any, ids: Tensor, *, steps: int, guidance: float, generator: torch.Generator) -> Tensor:
        """Noise-free latents of the prompts, [N, CHANNELS, side, side]; guidance 1 is none."""
        ...


@dataclass(frozen=True, slots=True)
class Recipe:
    """What tells one recipe from another; the model has a ``tokenizer``."""

    name: str
    build: Callable[[], Any]  # -> the untrained model
    loss: Callable[[Any, Data, int, torch.Generator, Tensor], Tensor]  # (model, data, batch, generator, empty ids)
    sample: Sample
    save: Callable[[Any, AutoencoderKL, Path], None]  # (model, autoencoder, folder): a diffusers pipeline
    side: int = SIZE // DOWNSCALE  # of its latents; pictures are framed by background up to it
    steps: int = 16  # of the evaluation
    guidance: float = 3.0  # likewise


def prepare_data(folder: Path, vae: AutoencoderKL, model: Any, *, scenes: int, side: int, seed: int, rank: int) -> Data:
    """Draw and encode the scenes once; other processes wait and share the file."""
    path = folder / "latents.f16"
    meta = folder / "latents.json"
    shape = (scenes, CHANNELS, side, side)
    captions_path = folder / "captions.txt"
    wanted = {"scenes": scenes, "side": side, "seed": seed}
    if rank == 0 and not (meta.exists() and json.loads(meta.read_text()) == wanted):
        folder.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(seed)
        store = np.memmap(path, dtype=np.float16, mode="w+", shape=shape)
        captions: list[str] = []
        for start in range(0, scenes, 500):
            specs = draw_specs(min(500, scenes - start), rng)
            images = torch.from_numpy(framed(draw_images(specs, rng), DOWNSCALE * side))
            with torch.no_grad():
                posterior = vae.encode(images * 2 - 1).latent_dist
            store[start : start + len(specs)] = posterior.mean.numpy()
            captions += [spec.caption for spec in specs]
        store.flush()
        captions_path.write_text("\n".join(captions) + "\n")
        meta.write_text(json.dumps(wanted))
    dist.barrier()
    ids = token_ids(model.tokenizer, captions_path.read_text().splitlines())
    return Data(np.memmap(path, dtype=np.float16, mode="r", shape=shape), ids)


def drop_captions(ids: Tensor, empty: Tensor, generator: torch.Generator) -> Tensor:
    """Token ids on the device of ``empty``, one row in ten replaced by those of the empty caption."""
    drop = (torch.rand(len(ids), generator=generator) < CAPTION_DROPOUT).to(empty.device)
    return torch.where(drop[:, None], empty, ids.to(empty.device))


def evaluation_captions(per_kind: int, held_out: bool, seed: int = 7) -> dict[Kind, list[str]]:
    """A fixed draw of captions of each kind, from the held-out or from the training compositions."""
    rng = np.random.default_rng(seed)
    chosen: dict[Kind, list[str]] = {}
    for kind in KINDS:
        pool = [spec for spec in all_specs(kind) if is_held_out(spec)] if held_out else list(training_specs(kind))
        chosen[kind] = [pool[i].caption for i in rng.choice(len(pool), size=per_kind, replace=len(pool) < per_kind)]
    return chosen


def save_sheet(images: Tensor, columns: int, path: Path, scale: int = 3) -> None:
    """A contact sheet, one row a kind."""
    grid = torch.cat([torch.cat(list(row), dim=2) for row in images.split(columns)], dim=1)
    pixels = (grid.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    Image.fromarray(pixels).resize((pixels.shape[1] * scale, pixels.shape[0] * scale), Image.Resampling.NEAREST).save(
        path
    )


class Denoiser(Protocol):
    """What a model predicts at one noise level."""

    def __call__(self, x: Tensor, time: Tensor, ids: Tensor) -> Tensor:
        """The prediction, in the shape of x; time is [N]."""
        ...


def guided(model: Denoiser, x: Tensor, time: Tensor, ids: Tensor, *, empty: Tensor, guidance: float) -> Tensor:
    """Classifier-free guidance in one forward of twice the batch; 1 means the conditional branch alone.

    Args:
        x: noisy latents, [N, CHANNELS, side, side].
        time: one number, the noise level in the model's terms.
        ids: token ids, [N, tokens].
        empty: token ids of the empty caption, [1, tokens].
    """
    if guidance == 1:
        return model(x, time.expand(len(x)), ids)
    both = torch.cat([empty.expand(len(ids), -1), ids])
    unconditional, conditional = model(torch.cat([x, x]), time.expand(len(both)), both).chunk(2)
    return unconditional + guidance * (conditional - unconditional)


@torch.no_grad()
def decode(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Pixels in [0, 1]."""
    return torch.cat([(vae.decode(z).sample / 2 + 0.5).clamp(0, 1) for z in latents.split(250)])


def evaluate(
    model: Any,
    vae: AutoencoderKL,
    captions: dict[Kind, Sequence[str]],
    sample: Sample,
    *,
    steps: int = 16,
    guidance: float = 4.0,
    seed: int = 1234,
) -> tuple[dict[str, float], Tensor]:
    """Verifier scores by kind ("strict/count", ...) and overall as the mean over kinds; and the images."""
    flat = [caption for kind in KINDS for caption in captions[kind]]
    device = next(model.parameters()).device
    ids = token_ids(model.tokenizer, flat).to(device)
    generator = torch.Generator().manual_seed(seed)
    images = decode(vae, sample(model, ids, steps=steps, guidance=guidance, generator=generator)).cpu()
    scores = verify(images.numpy(), flat)
    figures: dict[str, float] = {}
    at = 0
    for kind in KINDS:
        rows = slice(at, at + len(captions[kind]))
        figures[f"strict/{kind}"] = float(scores.strict[rows].mean())
        figures[f"partial/{kind}"] = float(scores.partial[rows].mean())
        at = rows.stop
    for name in ("strict", "partial"):
        figures[name] = sum(figures[f"{name}/{kind}"] for kind in KINDS) / len(KINDS)
    return figures, images


def report(recipe: Recipe, state: State, vae: AutoencoderKL, out: Path, *, loss: float, samples: int) -> None:
    """Append a row to the curve and redraw the contact sheet, from the averaged weights."""
    row: dict[str, float | int] = {
        "step": state.step,
        "samples": samples,
        "seconds": round(state.seconds, 1),
        "loss": loss,
    }
    for name, held_out in (("heldout", True), ("train", False)):
        captions = evaluation_captions(30, held_out)
        figures, images = evaluate(
            state.ema, vae, captions, recipe.sample, steps=recipe.steps, guidance=recipe.guidance
        )
        row |= {f"{name}/{key}": round(value, 4) for key, value in figures.items()}
        if held_out:
            save_sheet(images.view(len(KINDS), 30, *images.shape[1:])[:, :16].flatten(0, 1), 16, out / "sheet.png")
    captions = evaluation_captions(30, True)
    figures, _ = evaluate(state.ema, vae, captions, recipe.sample, steps=recipe.steps, guidance=1.0)
    row |= {f"heldout_cfg1/{key}": round(value, 4) for key, value in figures.items()}
    with (out / "curve.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")


@dataclass(frozen=True, slots=True)
class Defaults:
    """The numbers that the shipped weights were trained with."""

    steps: int  # of the schedule
    stop_at: int  # the step whose weights are shipped
    batch: int  # over all processes
    learning_rate: float
    evaluate_every: int


def parse_arguments(description: str, defaults: Defaults) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=defaults.steps)
    parser.add_argument("--stop-at", type=int, default=defaults.stop_at, help="the step whose weights are shipped")
    parser.add_argument("--batch", type=int, default=defaults.batch, help="over all processes")
    parser.add_argument("--learning-rate", type=float, default=defaults.learning_rate)
    parser.add_argument("--decay-share", type=float, default=0.4)
    parser.add_argument("--scenes", type=int, default=100_000)
    parser.add_argument("--evaluate-every", type=int, default=defaults.evaluate_every)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def train(recipe: Recipe, args: argparse.Namespace, rank: int, world: int, device: torch.device) -> None:
    """Build, prepare the data, and train."""
    torch.manual_seed(args.seed)  # initial weights, equal on all processes
    vae = AutoencoderKL.from_pretrained(args.vae).eval().requires_grad_(False)
    model = recipe.build()
    data = prepare_data(args.out / "data", vae, model, scenes=args.scenes, side=recipe.side, seed=args.seed, rank=rank)
    vae, model = vae.to(device), model.to(device)
    ema = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=args.learning_rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True
    )
    state = State(model, ema, optimizer)
    empty = token_ids(model.tokenizer, [""]).to(device)

    def leave_traces(loss: float) -> None:
        report(recipe, state, vae, args.out, loss=loss, samples=state.step * args.batch)
        recipe.save(copy.deepcopy(state.ema).cpu(), copy.deepcopy(vae).cpu(), args.out / "pipeline")

    optimise(
        state,
        Schedule(args.steps, args.stop_at, args.learning_rate, args.decay_share, args.evaluate_every, args.seed),
        name=recipe.name,
        checkpoint=args.out / "checkpoint.pt",
        loss=lambda generator: recipe.loss(model, data, args.batch // world, generator, empty),
        report=leave_traces,
    )


def run(recipe: Recipe, args: argparse.Namespace) -> None:
    """Set the processes up and train."""
    device = start_processes()
    args.out.mkdir(parents=True, exist_ok=True)
    train(recipe, args, dist.get_rank(), dist.get_world_size(), device)
    dist.destroy_process_group()


def settle_configs(folder: Path) -> None:
    """Make the files of a saved pipeline say nothing of this machine, and load as float32 everywhere."""
    for path in folder.glob("*/config.json"):
        values = json.loads(path.read_text())
        values.pop("_name_or_path", None)  # where the autoencoder lay when it was trained
        if path.parent.name.startswith("text_encoder"):
            # diffusers loads fp16 files as float32 unless told otherwise, transformers as the config says.
            values["dtype"] = "float32"
        path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")
