"""Train the small AutoencoderKL that the shipped image pipelines share.

    python samples/recipes/train_tiny_vae.py --out runs/tiny-vae

Data: rendered scenes without the held-out compositions, each pixel-perfect. Loss: foreground-weighted L1 + 2 MSE +
a light KL. After training the latent mean and standard deviation of every channel are folded exactly into the two
1x1 quantisation convolutions, so latents have mean 0 and deviation 1 with scaling_factor 1 and shift_factor 0: valid
for families that use a shift (SD3) and for those that do not (SD1.5). About five minutes on one CPU core.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from rich.progress import Progress
from scene_data import draw_images, draw_specs
from torch import Tensor

from difalign.embedded.scenes import BACKGROUND, SIZE
from difalign.embedded.verifier import verify

LATENT_CHANNELS = 2  # a patch of 6 x 6 latents must have fewer numbers than the network is wide (see tiny_sd3_parts)
FOREGROUND_WEIGHT = 4.0  # the background is 85 % of the pixels and learnt at once
KL_WEIGHT = 3e-4


def build_vae() -> AutoencoderKL:
    """An untrained autoencoder with factor 2 and 2 latent channels, about 41 k parameters."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=4,
        sample_size=SIZE,
        mid_block_add_attention=False,
        use_quant_conv=True,
        use_post_quant_conv=True,
        scaling_factor=1.0,
        shift_factor=0.0,
    )


def scene_batch(number: int, rng: np.random.Generator) -> tuple[Tensor, list[str]]:
    """Images in [-1, 1] and their captions."""
    specs = draw_specs(number, rng)
    return torch.from_numpy(draw_images(specs, rng)) * 2 - 1, [spec.caption for spec in specs]


def reconstruction_loss(vae: AutoencoderKL, images: Tensor, noise: torch.Generator) -> Tensor:
    """Foreground-weighted reconstruction plus KL, a scalar."""
    posterior = vae.encode(images).latent_dist
    latent = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=noise)
    error = vae.decode(latent).sample - images
    background = torch.tensor(BACKGROUND).view(1, 3, 1, 1) / 127.5 - 1
    foreground = ((images - background).abs().amax(dim=1, keepdim=True) > 0.1).float()
    weight = 1 + FOREGROUND_WEIGHT * foreground
    return (weight * (error.abs() + 2 * error.square())).mean() + KL_WEIGHT * posterior.kl().mean() / latent[0].numel()


@torch.no_grad()
def fold_statistics(vae: AutoencoderKL, images: Tensor) -> None:
    """Make every latent channel zero-mean and unit-deviation by rewriting the two 1x1 convolutions exactly."""
    latents = torch.cat([vae.encode(chunk).latent_dist.mean for chunk in images.split(256)])
    mean, std = latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3))
    quant, post = vae.quant_conv, vae.post_quant_conv
    channels = len(mean)
    # Encoder: mean' = (mean - m) / s; log-variance' = log-variance - 2 log s.
    quant.weight[:channels] /= std.view(-1, 1, 1, 1)
    quant.bias[:channels] = (quant.bias[:channels] - mean) / std
    quant.bias[channels:] -= 2 * std.log()
    # Decoder: undo it before its own convolution.
    post.bias += (post.weight * mean.view(1, -1, 1, 1)).sum(dim=(1, 2, 3))
    post.weight *= std.view(1, -1, 1, 1)


@torch.no_grad()
def evaluate(vae: AutoencoderKL, rng: np.random.Generator, number: int = 1000) -> dict[str, float]:
    """PSNR and strict verifier accuracy of reconstructions, with ground truth beside it."""
    images, captions = scene_batch(number, rng)
    latents = torch.cat([vae.encode(chunk).latent_dist.mean for chunk in images.split(256)])
    decoded = torch.cat([vae.decode(chunk).sample for chunk in latents.split(256)])
    mse = ((decoded - images) / 2).square().mean().item()
    pixels = [(x / 2 + 0.5).clamp(0, 1).numpy() for x in (images, decoded)]
    truth, rebuilt = (verify(p, captions).strict.mean().item() for p in pixels)
    return {
        "psnr": -10 * math.log10(mse),
        "strict_ground_truth": truth,
        "strict_reconstruction": rebuilt,
        "latent_mean": latents.mean().item(),
        "latent_std": latents.std().item(),
    }


def main() -> None:
    """Train, fold, evaluate and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=4e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)  # initial weights only
    rng, noise = np.random.default_rng(args.seed), torch.Generator().manual_seed(args.seed)
    vae = build_vae()
    optimizer = torch.optim.AdamW(vae.parameters(), lr=args.learning_rate, betas=(0.9, 0.99), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, args.learning_rate, total_steps=args.steps, pct_start=0.03
    )
    start = time.perf_counter()
    with Progress() as progress:
        task = progress.add_task("autoencoder", total=args.steps)
        for step in range(args.steps):
            loss = reconstruction_loss(vae, scene_batch(args.batch, rng)[0], noise)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            if step % 50 == 0:
                progress.update(task, completed=step, description=f"autoencoder loss {loss.item():.4f}")
    vae.eval()
    fold_statistics(vae, scene_batch(2000, rng)[0])
    figures = {"seconds": time.perf_counter() - start, "images": args.steps * args.batch, "seed": args.seed}
    figures |= evaluate(vae, rng)
    vae.save_pretrained(args.out)
    (args.out / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
