"""What a scorer may be handed: float RGB pixels in [0, 1], one prompt each."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_SLACK = 0.5 / 255  # half a grey level: what rounding may add


def check_media(media: Tensor, prompts: Sequence[str], *, reader: str, clips: bool = False) -> None:
    """Refuse what no scorer reads.

    Args:
        media: pictures [N, 3, H, W], or clips [N, F, 3, H, W].
        prompts: N texts.
        reader: the scorer's name, for the message.
        clips: whether it reads clips as well.

    Raises:
        ValueError: with what was found and the remedy, for another layout or type, no pictures, sides of no length,
            values outside [0, 1] or not finite, or another number of prompts.
    """
    _check_layout(media, reader, clips=clips)
    if len(media) != len(prompts):
        raise ValueError(f"{len(media)} images but {len(prompts)} prompts; give one prompt an image")
    if not len(media):
        raise ValueError(f"{reader} was handed no images; give at least one")
    if not media.numel():
        raise ValueError(f"{reader} was handed images without a pixel, shape {tuple(media.shape)}; decode them first")
    low, high = (float(value) for value in media.detach().aminmax())
    if not (low >= -_SLACK and high <= 1 + _SLACK):  # NaN is in no range
        raise ValueError(
            f"{reader} reads pixels in [0, 1], got values from {low:g} to {high:g}; clamp them, divide 8-bit ones "
            "by 255, or map [-1, 1] by (x + 1) / 2"
        )


def refuse_gradient(media: Tensor, *, reader: str) -> None:
    """Refuse to score without a gradient where one is asked for.

    Raises:
        ValueError: if the media require a gradient and gradients are enabled.
    """
    if torch.is_grad_enabled() and media.requires_grad:
        raise ValueError(
            f"{reader} has no gradient to the pixels; detach them, or use a reward whose card says differentiable: true"
        )


def _check_layout(media: Tensor, reader: str, *, clips: bool) -> None:
    wanted = "RGB images [N, 3, H, W]" + (" or clips [N, F, 3, H, W]" if clips else "") + " in [0, 1]"
    shape = tuple(media.shape)
    if media.ndim not in ((4, 5) if clips else (4,)):
        raise ValueError(f"{reader} reads {wanted}, got a tensor of shape {shape}")
    channels = shape[-3]
    if channels != 3:
        remedies = {1: "repeat the grey channel three times", 4: "leave the alpha channel out: media[..., :3, :, :]"}
        remedy = remedies.get(channels, "the channels come before height and width")
        raise ValueError(f"{reader} reads {wanted}, got {channels} channels in a tensor of shape {shape}; {remedy}")
    if not media.is_floating_point():
        raise ValueError(f"{reader} reads {wanted}, got {media.dtype}; divide 8-bit pixels by 255")
