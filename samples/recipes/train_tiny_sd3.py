"""Train tiny-sd3, the text-to-image flow model that ships with the project, from nothing.

    python samples/recipes/train_tiny_vae.py --out runs/tiny-vae
    torchrun --nproc-per-node 2 samples/recipes/train_tiny_sd3.py --vae runs/tiny-vae --out runs/tiny-sd3

Flow matching on the latents of rendered scenes: z = (1 - s) x0 + s noise, target noise - x0, s logit-normal (85 %) or
uniform (15 %). x0 is the posterior mean: sampled posteriors would make most of the velocity at low noise unpredictable.
The transformer and both text encoders learn jointly.

One schedule: warm-up, constant learning rate, linear decay over the last part. It is left at ``--stop-at``, where the
pipeline draws crisp shapes but still errs on numbers, pairs and positions, as a base for alignment should; the rest of
the schedule makes it too good. Runs on CPU as several single-thread gloo processes, or on CUDA; seeded, resumable (the
same command goes on where it stopped), and leaves ``curve.jsonl`` with loss and verifier scores.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from diffusers import AutoencoderKL
from PIL import Image
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from scene_data import draw_images, draw_specs, training_specs
from tiny_sd3_parts import CHANNELS, LATENT, TinySD3, evaluate, save_pipeline
from tiny_text import token_ids
from torch import Tensor

from difalign.embedded.scenes import KINDS, Kind, all_specs, is_held_out

CAPTION_DROPOUT = 0.1
EMA_DECAY = 0.999
WARMUP_STEPS = 200


@dataclass(frozen=True, slots=True)
class Data:
    """Encoded training scenes."""

    latents: np.memmap  # [N, CHANNELS, LATENT, LATENT] float16, posterior means
    ids: Tensor  # [N, tokens] int64


def prepare_data(folder: Path, vae: AutoencoderKL, model: TinySD3, *, scenes: int, seed: int, rank: int) -> Data:
    """Draw and encode the scenes once; other processes wait and share the file."""
    path = folder / "latents.f16"
    meta = folder / "latents.json"
    shape = (scenes, CHANNELS, LATENT, LATENT)
    captions_path = folder / "captions.txt"
    wanted = {"scenes": scenes, "seed": seed}
    if rank == 0 and not (meta.exists() and json.loads(meta.read_text()) == wanted):
        folder.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(seed)
        store = np.memmap(path, dtype=np.float16, mode="w+", shape=shape)
        captions: list[str] = []
        for start in range(0, scenes, 500):
            specs = draw_specs(min(500, scenes - start), rng)
            with torch.no_grad():
                posterior = vae.encode(torch.from_numpy(draw_images(specs, rng)) * 2 - 1).latent_dist
            store[start : start + len(specs)] = posterior.mean.numpy()
            captions += [spec.caption for spec in specs]
        store.flush()
        captions_path.write_text("\n".join(captions) + "\n")
        meta.write_text(json.dumps(wanted))
    dist.barrier()
    ids = token_ids(model.tokenizer, captions_path.read_text().splitlines())
    return Data(np.memmap(path, dtype=np.float16, mode="r", shape=shape), ids)


def learning_rate(step: int, total: int, peak: float, decay_share: float) -> float:
    """Warm-up, constant, then linear to 1 % over the last ``decay_share`` of the steps."""
    left = (total - step) / max(1.0, total * decay_share)
    return peak * min(1.0, (step + 1) / WARMUP_STEPS, max(0.01, left))


def draw_sigma(number: int, generator: torch.Generator) -> Tensor:
    """Noise levels of a batch, [N]: logit-normal(0, 1), one in seven uniform."""
    logit = torch.sigmoid(torch.randn(number, generator=generator))
    uniform = torch.rand(number, generator=generator)
    return torch.where(torch.rand(number, generator=generator) < 0.15, uniform, logit)


def draw_null_weight(number: int, generator: torch.Generator) -> Tensor:
    """How many zero tokens each row sees, [N]: one for most, else log-uniform up to 512."""
    many = torch.exp(torch.rand(number, generator=generator) * math.log(512.0))
    return torch.where(torch.rand(number, generator=generator) < 0.6, 1.0, many)


def batch_loss(model: TinySD3, data: Data, batch: int, generator: torch.Generator, empty: Tensor) -> Tensor:
    """The flow-matching loss of one random batch, a scalar."""
    device = empty.device
    rows = torch.randint(len(data.ids), (batch,), generator=generator)
    clean = torch.from_numpy(data.latents[rows.numpy()].astype(np.float32)).to(device)
    noise = torch.randn(clean.shape, generator=generator).to(device)
    sigma = draw_sigma(batch, generator).to(device)
    drop = (torch.rand(batch, generator=generator) < CAPTION_DROPOUT).to(device)
    ids = torch.where(drop[:, None], empty, data.ids[rows].to(device))
    s = sigma.view(-1, 1, 1, 1)
    model.null_token.weight = draw_null_weight(batch, generator).to(device)
    return (model((1 - s) * clean + s * noise, sigma, ids) - (noise - clean)).square().mean()


def average_gradients(parameters: list[torch.nn.Parameter], world: int) -> None:
    """All-reduce one flat gradient: a single collective a step."""
    if world == 1:
        return
    flat = torch.cat([p.grad.reshape(-1) for p in parameters if p.grad is not None])
    dist.all_reduce(flat)
    flat /= world
    at = 0
    for p in parameters:
        if p.grad is not None:
            p.grad.copy_(flat[at : at + p.grad.numel()].view_as(p.grad))
            at += p.grad.numel()


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


@dataclass
class State:
    """Everything that a resumed run needs."""

    model: TinySD3
    ema: TinySD3
    optimizer: torch.optim.Optimizer
    step: int = 0
    seconds: float = 0.0

    def save(self, path: Path) -> None:
        """Write aside, then rename: a killed run leaves the last complete file."""
        payload = {
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
        }
        torch.save(payload, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)

    def load(self, path: Path) -> None:
        """Restore in place."""
        payload = torch.load(path, weights_only=True, map_location="cpu")
        self.model.load_state_dict(payload["model"])
        self.ema.load_state_dict(payload["ema"])
        self.optimizer.load_state_dict(payload["optimizer"])
        self.step, self.seconds = payload["step"], payload["seconds"]

    @torch.no_grad()
    def update_ema(self) -> None:
        """Exponential moving average with a short warm-up."""
        decay = min(EMA_DECAY, (1 + self.step) / (10 + self.step))
        averaged, current = list(self.ema.parameters()), list(self.model.parameters())
        torch._foreach_lerp_(averaged, current, 1 - decay)


def report(state: State, vae: AutoencoderKL, out: Path, loss: float, samples: int) -> None:
    """Append a row to the curve and redraw the contact sheet, from the averaged weights."""
    row: dict[str, float | int] = {
        "step": state.step,
        "samples": samples,
        "seconds": round(state.seconds, 1),
        "loss": loss,
    }
    for name, held_out in (("heldout", True), ("train", False)):
        figures, images = evaluate(state.ema, vae, evaluation_captions(30, held_out), guidance=3.0)
        row |= {f"{name}/{key}": round(value, 4) for key, value in figures.items()}
        if held_out:
            save_sheet(images.view(len(KINDS), 30, *images.shape[1:])[:, :16].flatten(0, 1), 16, out / "sheet.png")
    figures, _ = evaluate(state.ema, vae, evaluation_captions(30, True), guidance=1.0)
    row |= {f"heldout_cfg1/{key}": round(value, 4) for key, value in figures.items()}
    with (out / "curve.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")


def parse_arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2200)
    parser.add_argument("--stop-at", type=int, default=1760, help="the step whose weights are shipped")
    parser.add_argument("--batch", type=int, default=128, help="over all processes")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--decay-share", type=float, default=0.4)
    parser.add_argument("--scenes", type=int, default=100_000)
    parser.add_argument("--evaluate-every", type=int, default=440)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def train(args: argparse.Namespace, rank: int, world: int, device: torch.device) -> None:
    """The training loop; identical weights on every process, one flat all-reduce a step."""
    torch.manual_seed(args.seed)  # initial weights, equal on all processes
    vae = AutoencoderKL.from_pretrained(args.vae).eval().requires_grad_(False)
    model = TinySD3()
    data = prepare_data(args.out / "data", vae, model, scenes=args.scenes, seed=args.seed, rank=rank)
    vae, model = vae.to(device), model.to(device)
    ema = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=args.learning_rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True
    )
    state = State(model, ema, optimizer)
    checkpoint = args.out / "checkpoint.pt"
    if checkpoint.exists():
        state.load(checkpoint)
    parameters = list(model.parameters())
    empty = token_ids(model.tokenizer, [""]).to(device)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    smooth, last = math.nan, time.perf_counter()
    last_step = min(args.steps, args.stop_at)
    with Progress(*columns, disable=rank != 0) as progress:
        task = progress.add_task("tiny-sd3", total=last_step, completed=state.step)
        while state.step < last_step:
            generator = torch.Generator().manual_seed((args.seed * 1_000_003 + state.step) * 64 + rank)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(state.step, args.steps, args.learning_rate, args.decay_share)
            loss = batch_loss(model, data, args.batch // world, generator, empty)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            average_gradients(parameters, world)
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            state.step += 1
            state.update_ema()
            value = loss.item()
            smooth = value if math.isnan(smooth) else 0.98 * smooth + 0.02 * value
            now = time.perf_counter()
            state.seconds, last = state.seconds + now - last, now
            if rank == 0 and state.step % 20 == 0:
                progress.update(task, completed=state.step, description=f"tiny-sd3 loss {smooth:.4f}")
            if rank == 0 and (state.step % args.evaluate_every == 0 or state.step == last_step):
                state.save(checkpoint)
                report(state, vae, args.out, smooth, state.step * args.batch)
                save_pipeline(copy.deepcopy(state.ema).cpu(), copy.deepcopy(vae).cpu(), args.out / "pipeline")
                last = time.perf_counter()


def main() -> None:
    """Set the processes up and train."""
    args = parse_arguments()
    os.environ.setdefault("RANK", "0")
    os.environ.setdefault("WORLD_SIZE", "1")
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "29511")
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
    dist.init_process_group("nccl" if cuda else "gloo")
    args.out.mkdir(parents=True, exist_ok=True)
    train(args, dist.get_rank(), dist.get_world_size(), device)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
