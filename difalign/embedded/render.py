"""The renderer: anti-aliased shapes by signed distance, on a plain background."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from difalign.embedded.scenes import BACKGROUND, COLORS, SHAPES, SIZE, Placed

Array = NDArray[np.floating]

_SQUARE_HALF = 0.90  # half side of the square, in radii
_CROSS_ARM = 0.36  # half width of the cross's arms, in radii
_TRIANGLE_APEX = 1.15  # height of the apex above the centroid, in radii; the base lies half as far below
_TRIANGLE_HALF_BASE = 1.10  # in radii

# Area of a shape of radius 1, from the same constants.
SHAPE_AREA = {
    "circle": np.pi,
    "square": (2 * _SQUARE_HALF) ** 2,
    "triangle": _TRIANGLE_HALF_BASE * _TRIANGLE_APEX * 1.5,
    "cross": 4 * (2 * _CROSS_ARM) * 1.0 - (2 * _CROSS_ARM) ** 2,
}


def signed_distance(shape: str, dx: Array, dy: Array, radius: Array | float) -> Array:
    """Distance in pixels to the outline of a shape about its centroid, negative inside (y downwards).

    Exact for the circle; for the others the usual bound by their half planes, exact near straight edges.
    """
    if shape == "circle":
        return np.hypot(dx, dy) - radius
    ax, ay = np.abs(dx), np.abs(dy)
    if shape == "square":
        return np.maximum(ax, ay) - _SQUARE_HALF * radius
    if shape == "cross":
        arm = _CROSS_ARM * radius
        return np.minimum(np.maximum(ax - radius, ay - arm), np.maximum(ax - arm, ay - radius))
    height = 1.5 * _TRIANGLE_APEX  # centroid at one third of the height
    slope_norm = np.hypot(height, _TRIANGLE_HALF_BASE)
    side = (ax * height + (dy + _TRIANGLE_APEX * radius) * -_TRIANGLE_HALF_BASE) / slope_norm
    return np.maximum(side, dy - 0.5 * _TRIANGLE_APEX * radius)


def coverage(shape: str, dx: Array, dy: Array, radius: Array | float) -> Array:
    """Share of each pixel that the shape covers, in [0, 1]: a one-pixel ramp across the outline."""
    return np.clip(0.5 - signed_distance(shape, dx, dy, radius), 0.0, 1.0)


def render(scenes: Sequence[Sequence[Placed]], size: int = SIZE) -> Array:
    """Draw scenes, later objects over earlier ones.

    Returns:
        Pixels in [0, 1], [N, 3, size, size] float32.
    """
    images = np.empty((len(scenes), 3, size, size), dtype=np.float32)
    images[:] = np.asarray(BACKGROUND, dtype=np.float32)[:, None, None] / 255.0
    axis = np.arange(size, dtype=np.float32) + 0.5
    depth = max((len(scene) for scene in scenes), default=0)
    for layer in range(depth):
        for shape in SHAPES:
            rows = [i for i, scene in enumerate(scenes) if layer < len(scene) and scene[layer].thing.shape == shape]
            if rows:
                _draw(images, np.asarray(rows), [scenes[i][layer] for i in rows], axis)
    return images


def _draw(images: Array, rows: NDArray[np.intp], objects: Sequence[Placed], axis: Array) -> None:
    x, y, radius = (np.asarray([getattr(o, f) for o in objects], dtype=np.float32) for f in ("x", "y", "radius"))
    dx, dy = axis[None, None, :] - x[:, None, None], axis[None, :, None] - y[:, None, None]
    dx, dy = np.broadcast_arrays(dx, dy)
    alpha = coverage(objects[0].thing.shape, dx, dy, radius[:, None, None])[:, None]
    color = np.asarray([COLORS[o.thing.color] for o in objects], dtype=np.float32)[:, :, None, None] / 255.0
    images[rows] = images[rows] * (1 - alpha) + color * alpha
