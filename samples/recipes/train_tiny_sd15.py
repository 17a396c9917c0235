"""Train tiny-sd15, a text-to-image diffusion model of Stable Diffusion's kind, from nothing.

    python samples/recipes/train_tiny_vae.py --out runs/tiny-vae
    torchrun --nproc-per-node 2 samples/recipes/train_tiny_sd15.py --vae runs/tiny-vae --out runs/tiny-sd15

``--vae`` also takes the autoencoder of the shipped model, pipelines/tiny-sd3/vae: the two share it. Denoising on the
latents of rendered scenes: x_t = sqrt(a_t) x0 + sqrt(1 - a_t) noise, target the noise. UNet and text encoder
learn jointly. Everything else is as in ``train_tiny_sd3.py``: one schedule that is left at ``--stop-at``, a base with
room to improve, several single-thread gloo processes or CUDA, seeded and resumable, ``curve.jsonl``.

Scenes have 36 pixels a side, and ``StableDiffusionPipeline`` refuses sides that are no multiple of 8: the pictures
here have 40, the scene in the middle of a frame of background.
"""

from __future__ import annotations

import functools

import torch
from scene_training import Data, Defaults, Recipe, drop_captions, parse_arguments, run
from tiny_sd15_parts import LATENT, TinySD15, build_scheduler, sample_latents, save_pipeline
from torch import Tensor

DECIDED_AT = 400  # the timestep below which a noisy picture still shows what it holds


@functools.cache
def kept_shares() -> Tensor:
    """The signal's share of the variance at every timestep, [1000]."""
    return build_scheduler().alphas_cumprod


def draw_times(batch: int, generator: torch.Generator) -> Tensor:
    """Timesteps [batch]: half of them uniform, half uniform where what is in the picture gets decided."""
    everywhere = torch.randint(0, len(kept_shares()), (batch,), generator=generator)
    undecided = torch.randint(DECIDED_AT, len(kept_shares()), (batch,), generator=generator)
    return torch.where(torch.rand(batch, generator=generator) < 0.5, everywhere, undecided)


def batch_loss(model: TinySD15, data: Data, batch: int, generator: torch.Generator, empty: Tensor) -> Tensor:
    """The mean squared error of the predicted noise on one random batch, a scalar."""
    device = empty.device
    rows = data.draw_rows(batch, generator)
    clean = data.clean(rows).to(device)
    noise = torch.randn(clean.shape, generator=generator).to(device)
    time = draw_times(batch, generator)
    ids = drop_captions(data.ids[rows], empty, generator)
    kept = kept_shares()[time].to(device).view(-1, 1, 1, 1)
    noisy = kept.sqrt() * clean + (1 - kept).sqrt() * noise
    return (model(noisy, time.to(device), ids) - noise).square().mean()


RECIPE = Recipe(
    name="tiny-sd15",
    build=TinySD15,
    loss=batch_loss,
    sample=sample_latents,
    save=save_pipeline,
    steps=20,
    guidance=4.0,
    side=LATENT,
)
DEFAULTS = Defaults(steps=5000, stop_at=2000, batch=64, learning_rate=1.5e-3, evaluate_every=1000)

if __name__ == "__main__":
    run(RECIPE, parse_arguments(__doc__, DEFAULTS))
