"""The parts of tiny-sd15: its UNet, its text conditioning, sampling by DDIM, and how it is saved.

Autoencoder, tokenizer and captions are those of tiny-sd3, so that what differs between the two is the family: a UNet
that predicts the noise under Stable Diffusion's schedule, against a transformer that predicts a velocity.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from scene_training import CHANNELS, guided, settle_configs
from tiny_text import build_plain_text_encoder, build_tokenizer, token_ids
from torch import Tensor, nn

TEXT_WIDTH = 64
LATENT = 20  # a side of 40 pixels: StableDiffusionPipeline asks for multiples of 8, and scenes have 36


def build_unet() -> UNet2DConditionModel:
    """An untrained UNet of two levels, 32 and 64 wide, with attention to the text on the inner one."""
    return UNet2DConditionModel(
        sample_size=LATENT,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,  # diffusers' name for the number of heads
        norm_num_groups=8,
    )


def build_scheduler() -> DDIMScheduler:
    """The scheduler that ships with the pipeline: Stable Diffusion's betas and settings."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


class TinySD15(nn.Module):
    """What is trained: the UNet and the text encoder, called as the diffusers pipeline calls them."""

    def __init__(self) -> None:
        super().__init__()
        self.tokenizer = build_tokenizer()
        self.text_encoder = build_plain_text_encoder(self.tokenizer)
        self.unet = build_unet()

    def forward(self, x: Tensor, time: Tensor, ids: Tensor) -> Tensor:
        """The noise in x, [N, CHANNELS, LATENT, LATENT]; time is [N], 0 to 999."""
        return self.unet(x, time, encoder_hidden_states=self.text_encoder(ids).last_hidden_state).sample


@torch.no_grad()
def sample_latents(
    model: TinySD15, ids: Tensor, *, steps: int, guidance: float, generator: torch.Generator, batch: int = 250
) -> Tensor:
    """DDIM without noise, [N, CHANNELS, LATENT, LATENT]; guidance 1 means the conditional branch alone."""
    device = ids.device
    empty = token_ids(model.tokenizer, [""]).to(device)
    scheduler = build_scheduler()
    scheduler.set_timesteps(steps)
    noise = torch.randn(len(ids), CHANNELS, LATENT, LATENT, generator=generator).to(device)
    done = []
    for start, chunk in zip(noise.split(batch), ids.split(batch), strict=True):
        x = start
        for time in scheduler.timesteps:
            epsilon = guided(model, x, time.to(device), chunk, empty=empty, guidance=guidance)
            x = scheduler.step(epsilon, int(time), x).prev_sample
        done.append(x)
    return torch.cat(done)


def save_pipeline(model: TinySD15, vae: AutoencoderKL, folder: Path) -> None:
    """Write a StableDiffusionPipeline folder in fp16 safetensors that diffusers alone can load."""
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=model.text_encoder,
        tokenizer=model.tokenizer,
        unet=model.unet,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(dtype=torch.float16)
    pipeline.save_pretrained(folder)
    pipeline.to(dtype=torch.float32)
    settle_configs(folder)
