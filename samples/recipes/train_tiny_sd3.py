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

import math

import torch
from scene_training import Data, Defaults, Recipe, drop_captions, parse_arguments, run
from tiny_sd3_parts import TinySD3, sample_latents, save_pipeline
from torch import Tensor


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
    rows = data.draw_rows(batch, generator)
    clean = data.clean(rows).to(device)
    noise = torch.randn(clean.shape, generator=generator).to(device)
    sigma = draw_sigma(batch, generator).to(device)
    ids = drop_captions(data.ids[rows], empty, generator)
    s = sigma.view(-1, 1, 1, 1)
    model.null_token.weight = draw_null_weight(batch, generator).to(device)
    return (model((1 - s) * clean + s * noise, sigma, ids) - (noise - clean)).square().mean()


RECIPE = Recipe(name="tiny-sd3", build=TinySD3, loss=batch_loss, sample=sample_latents, save=save_pipeline)
DEFAULTS = Defaults(steps=2200, stop_at=1760, batch=128, learning_rate=2e-3, evaluate_every=440)

if __name__ == "__main__":
    run(RECIPE, parse_arguments(__doc__, DEFAULTS))
