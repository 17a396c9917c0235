"""Train tiny-clip, the CLIPModel that ships with the project as a learned reward, from nothing.

    torchrun --nproc-per-node 2 samples/recipes/train_tiny_clip.py --out runs/tiny-clip

Contrastive learning on rendered scenes and their captions. A batch has hard negatives of two kinds: every second
picture shows what the caption beside it would say with one attribute changed, and every caption brings changed ones
that no picture of the batch shows. A caption that is true of a picture is never a negative of it. Held-out
compositions occur neither as pictures nor as captions.

Half of the pictures stand in a frame of background, 40 pixels a side, and are resized to the 36 of the model, as those
of tiny-sd15 will be; all carry light noise. Everything else is as in ``train_tiny_sd3.py``: several single-thread gloo
processes or CUDA, seeded and resumable, an average of the weights, ``curve.jsonl``.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from clip_measures import FRAME, preferences, retrieval
from scene_claims import Change, changed_captions, is_true
from scene_data import draw_specs, framed
from tiny_clip_parts import build_clip, build_image_processor, contrastive_loss, save_clip
from tiny_text import build_tokenizer, token_ids
from torch import Tensor
from training_loop import Schedule, State, optimise, start_processes
from transformers import CLIPTokenizer

from difalign.embedded.render import render
from difalign.embedded.scenes import Kind, SceneSpec, draw_layout, is_held_out
from difalign.reward_models.clip import ClipReward
from difalign.reward_models.preprocessing import ImageInput, preprocess

# Things, colours and numbers are learnt at once; who is where, and which has which attribute, takes long.
KIND_SHARE: Mapping[Kind, float] = {
    "single": 0.06,
    "place": 0.18,
    "count": 0.10,
    "two": 0.12,
    "relation": 0.42,
    "count_pair": 0.12,
}
CHANGE_SHARE: Mapping[Change, float] = {
    "color": 0.08,
    "shape": 0.08,
    "count": 0.14,
    "relation": 0.30,
    "place": 0.20,
    "binding": 0.20,
}
CHANGED_TEXTS = 2  # extra captions beside each picture's own
MAX_NOISE = 0.1  # deviation of the pixel noise, drawn uniformly up to this


@dataclass(frozen=True, slots=True)
class Batch:
    """Pictures with their captions, and more captions."""

    pixels: Tensor  # [B, 3, SIZE, SIZE], preprocessed
    captions: list[str]  # [B + E]
    true: Tensor  # [B, B + E] bool


def draw_changed(spec: SceneSpec, rng: np.random.Generator) -> SceneSpec:
    """A training scene that differs in one attribute, by ``CHANGE_SHARE`` of those that can; itself where none can."""
    allowed = allowed_changes(spec)
    if not allowed:
        return spec
    shares = np.array([CHANGE_SHARE[change] for change in allowed])
    others = allowed[list(allowed)[rng.choice(len(allowed), p=shares / shares.sum())]]
    return others[rng.integers(len(others))]


@functools.cache
def allowed_changes(spec: SceneSpec) -> Mapping[Change, tuple[SceneSpec, ...]]:
    """The changed scenes that training may see, by attribute; attributes that cannot change are left out."""
    by_change: dict[Change, tuple[SceneSpec, ...]] = {
        change: tuple(other for other in others if not is_held_out(other))
        for change, others in changed_captions(spec).items()
    }
    return {change: others for change, others in by_change.items() if others}


def draw_pictures(layouts: list, rng: np.random.Generator, wanted: ImageInput) -> Tensor:
    """Noisy pictures of layouts as the model reads them, every other one from a frame of background."""
    images = render(layouts)
    plain, wide = images[0::2], framed(images[1::2], FRAME)
    ready = torch.empty(images.shape)
    for start, part in enumerate((plain, wide)):
        deviation = rng.uniform(0, MAX_NOISE, size=(len(part), 1, 1, 1))
        noisy = np.clip(part + deviation * rng.standard_normal(part.shape), 0, 1)
        ready[start::2] = preprocess(torch.from_numpy(noisy), wanted, mode="tensor")
    return ready


def draw_batch(pairs: int, rng: np.random.Generator, wanted: ImageInput) -> Batch:
    """Scenes, the same number with one attribute changed, their pictures, and changed captions for all."""
    first = draw_specs(pairs - pairs // 2, rng, KIND_SHARE)
    specs = first + [draw_changed(spec, rng) for spec in first[: pairs // 2]]
    order = rng.permutation(pairs)  # so that frames fall on both halves
    specs = [specs[row] for row in order]
    texts = specs + [draw_changed(spec, rng) for spec in specs for _ in range(CHANGED_TEXTS)]
    layouts = [draw_layout(spec, rng) for spec in specs]
    true = torch.from_numpy(is_true(texts, layouts))
    return Batch(draw_pictures(layouts, rng, wanted), [spec.caption for spec in texts], true)


@dataclass(frozen=True, slots=True)
class Task:
    """What a step needs besides the weights."""

    tokenizer: CLIPTokenizer
    wanted: ImageInput
    device: torch.device

    def loss(self, model: torch.nn.Module, pairs: int, generator: torch.Generator) -> Tensor:
        """The contrastive loss of one random batch, a scalar."""
        rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        batch = draw_batch(pairs, rng, self.wanted)
        ids = token_ids(self.tokenizer, batch.captions)
        longest = int((ids != self.tokenizer.pad_token_id).sum(dim=1).max()) + 1  # the end is the padding's token
        device = self.device
        return contrastive_loss(model, batch.pixels.to(device), ids[:, :longest].to(device), batch.true.to(device))

    def report(self, state: State, out: Path, *, loss: float, samples: int) -> None:
        """Append a row to the curve and save the averaged weights."""
        ema = copy.deepcopy(state.ema).cpu()
        reward = ClipReward(ema, self.tokenizer, self.wanted)
        row: dict[str, float | int] = {"step": state.step, "samples": samples, "seconds": round(state.seconds, 1)}
        row |= {"loss": loss, "scale": round(float(ema.logit_scale.exp()), 2)}
        for split in ("heldout", "train"):
            found = retrieval(reward, split, number=512, seed=7)
            row |= {
                f"{split}/image_to_text": found.image_to_text.mean,
                f"{split}/text_to_image": found.text_to_image.mean,
            }
            for change, share in preferences(reward, split, number=200, seed=7).items():
                row[f"{split}/prefers/{change}"] = share.mean
        with (out / "curve.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        save_clip(ema, self.tokenizer, out / "model")


def parse_arguments() -> argparse.Namespace:
    """Command line; the defaults are those of the shipped weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1800)
    parser.add_argument("--batch", type=int, default=128, help="pairs, over all processes")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--decay-share", type=float, default=0.4)
    parser.add_argument("--evaluate-every", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    """Build, train, save."""
    args = parse_arguments()
    device = start_processes()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)  # initial weights, equal on all processes
    task = Task(build_tokenizer(), ImageInput.of_processor(build_image_processor()), device)
    model = build_clip(task.tokenizer).to(device)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=args.learning_rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True
    )
    state = State(model, copy.deepcopy(model).requires_grad_(False), optimizer)
    pairs = args.batch // dist.get_world_size()
    optimise(
        state,
        Schedule(args.steps, args.steps, args.learning_rate, args.decay_share, args.evaluate_every, args.seed),
        name="tiny-clip",
        checkpoint=args.out / "checkpoint.pt",
        loss=lambda generator: task.loss(model, pairs, generator),
        report=lambda loss: task.report(state, args.out, loss=loss, samples=state.step * args.batch),
    )
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
