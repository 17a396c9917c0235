"""Latents of one image: drawn, checked, and turned into pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

LatentShape = tuple[int, int, int]  # [C, h, w]


def draw_latents(generators: Sequence[torch.Generator], shape: LatentShape, device: torch.device) -> Tensor:
    """One latent a generator, [N, C, h, w] float32, drawn where the generator lives.

    Equal to ``pipe(..., generator=[...])`` to the last bit if the text encoders are float32; diffusers draws in
    their dtype, here noise is float32 for every network.

    Raises:
        ValueError: if there is no generator.
    """
    if not generators:
        raise ValueError("no generators: pass one for every latent")
    draws = [torch.randn((1, *shape), generator=g, device=g.device) for g in generators]
    return torch.cat([draw.to(device) for draw in draws])


def check_latents(x: Tensor, shape: LatentShape) -> None:
    """Refuse latents of another shape than [N, *shape].

    Raises:
        ValueError: naming both shapes.
    """
    if x.dim() != 4 or tuple(x.shape[1:]) != shape:
        raise ValueError(
            f"latents must be [N, {', '.join(map(str, shape))}] at this resolution, "
            f"got {list(x.shape)}: set height and width to change it"
        )


def pack(x: Tensor) -> Tensor:
    """[N, C, h, w] as the tokens of FLUX and Qwen-Image, one for 2x2 elements, [N, h w / 4, 4 C]; row by row."""
    return functional.pixel_unshuffle(x, 2).flatten(2).transpose(1, 2).contiguous()  # kernels round by layout


def unpack(tokens: Tensor, shape: LatentShape) -> Tensor:
    """What ``pack`` was given, [N, *shape]."""
    _, height, width = shape
    return functional.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, (height // 2, width // 2)), 2)


def decode_pixels(vae: Any, z: Tensor) -> Tensor:
    """Pixels in [0, 1], [N, 3, H, W]: what diffusers makes of unscaled latents by its AutoencoderKL.

    Differentiable, but clamped as diffusers clamps: pixels outside [0, 1] before the clamp pass no gradient.
    """
    return (vae.decode(z, return_dict=False)[0] * 0.5 + 0.5).clamp(0, 1)
