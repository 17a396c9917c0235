"""Pictures inside a page: as addresses that hold them."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

from difalign.report.images import TILE_EDGE, fit_tile

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, slots=True)
class Embedded:
    """One picture."""

    source: str  # data URI
    crisp: bool  # enlarge without smoothing


def embed(image: Image) -> Embedded:
    """A few pixels lossless, to be enlarged by the browser; more of them reduced to a tile."""
    small = max(image.size) <= TILE_EDGE // 2
    buffer = io.BytesIO()
    if small:
        image.save(buffer, format="PNG", optimize=True)
    else:
        fit_tile(image)[0].save(buffer, format="JPEG", quality=90)
    return Embedded(data_uri(buffer.getvalue(), f"image/{'png' if small else 'jpeg'}"), small)


def data_uri(content: bytes, media_type: str) -> str:
    """Bytes as an address that holds them."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"
