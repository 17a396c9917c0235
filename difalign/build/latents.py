"""The shape of a pipeline's latents from its JSON files or its card, without loading anything."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from difalign.build.cards import Found, PipelineCard

_DENOISERS = ("transformer", "unet")  # subfolders of a diffusers pipeline, of which it has one


def latent_shape(
    found: Found[PipelineCard], *, height: int | None = None, width: int | None = None
) -> tuple[int, int, int] | None:
    """[C, h, w] of one latent; None where neither the disk nor the card can say.

    Files of the pipeline are read where they lie on the disk: in a local folder, or in the model hub's cache.

    Args:
        found: the card.
        height: of the images, in pixels; the card's, then what the network was trained at, if None.
        width: likewise.
    """
    card = found.card
    denoiser = next((config for name in _DENOISERS if (config := _read(found, name)) is not None), {})
    autoencoder = _read(found, "vae") or {}
    channels = _count(_channels(denoiser, autoencoder), card.latent_channels)
    scale = _count(_scale(autoencoder), card.latent_scale)
    if channels is None or scale is None:
        return None
    trained = _trained_size(denoiser)
    rows = _side(height if height is not None else card.height, scale, trained)
    columns = _side(width if width is not None else card.width, scale, trained)
    return None if rows is None or columns is None else (channels, rows, columns)


def _side(pixels: int | None, scale: int, trained: int | None) -> int | None:
    return trained if pixels is None else pixels // scale


def _channels(denoiser: Mapping[str, Any], autoencoder: Mapping[str, Any]) -> object:
    """Those of the autoencoder: a denoiser may read several elements as one token (FLUX, Qwen-Image)."""
    named = (autoencoder.get("latent_channels"), autoencoder.get("z_dim"), denoiser.get("in_channels"))
    return next((channels for channels in named if channels is not None), None)


def _scale(autoencoder: Mapping[str, Any]) -> int | None:
    """Pixels a latent element: every block of the autoencoder but the last halves the sides, as diffusers counts.

    Autoencoders of clips list what they halve instead (Qwen-Image).
    """
    blocks, halved = autoencoder.get("block_out_channels"), autoencoder.get("temperal_downsample")
    if isinstance(halved, list):
        return 2 ** len(halved)
    return 2 ** (len(blocks) - 1) if isinstance(blocks, list) and blocks else None


def _trained_size(denoiser: Mapping[str, Any]) -> int | None:
    return _count(denoiser.get("sample_size"), None)


def _count(value: object, otherwise: int | None) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else otherwise


def _read(found: Found[PipelineCard], component: str) -> Mapping[str, Any] | None:
    """``component/config.json`` of the pipeline, or None where it is not on the disk or not readable."""
    file = _locate(found, component)
    try:
        content = json.loads(file.read_text(encoding="utf-8")) if file is not None else None
    except (OSError, ValueError):
        return None
    return content if isinstance(content, Mapping) else None


def _locate(found: Found[PipelineCard], component: str) -> Path | None:
    weights, name = found.weights(), f"{component}/config.json"
    if isinstance(weights, Path):
        return weights / name if (weights / name).is_file() else None
    if weights is None:
        return None
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(weights, name, revision=found.card.revision)
    return Path(cached) if isinstance(cached, str) else None
