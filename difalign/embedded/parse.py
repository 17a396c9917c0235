"""From pixels to objects, by analysis and synthesis.

Connected foreground is explained as one palette colour times a coverage mask; the mask is compared with the
renderer's own drawing of every shape at the mask's centroid and area. What no drawing explains stays unrecognised.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from difalign.embedded.render import SHAPE_AREA, Array, coverage
from difalign.embedded.scenes import BACKGROUND, COLORS, RADIUS, SHAPES, Thing

_SEED_CONTRAST = 0.42  # max-channel distance from the background that starts an object; splits touching soft edges
_CLUTTER_FLOOR = 0.16  # background contrast below this is not clutter (pixel noise of deviation 0.06 stays below it)
_MIN_AREA = 4.0  # pixels; smaller specks are clutter, not objects
_MAX_RESIDUAL = 0.14  # RMS distance of an object's pixels from (background + coverage x colour), RGB in [0, 1]
_MIN_IOU = 0.78  # soft intersection over union with the renderer's drawing
_RADIUS_SLACK = 0.8  # pixels beyond the renderer's range of radii
_HALF = 9  # half side of the comparison window, pixels

_BG = np.asarray(BACKGROUND, dtype=np.float32) / 255.0
_PALETTE = np.asarray(list(COLORS.values()), dtype=np.float32) / 255.0 - _BG  # [C, 3], relative to the background
_COLOR_NAMES = tuple(COLORS)
_IN_PLANE = np.zeros((3, 3, 3), dtype=int)  # 4-neighbourhood within an image, none across the batch
_IN_PLANE[1] = ndimage.generate_binary_structure(2, 1)


@dataclass(frozen=True, slots=True)
class Found:
    """An object read off an image: centroid and radius in pixels, and how well the drawing fits (IoU)."""

    thing: Thing
    x: float
    y: float
    radius: float
    iou: float


@dataclass(frozen=True, slots=True)
class ParsedImage:
    """What an image shows."""

    size: tuple[int, int]  # pixels across and down
    objects: tuple[Found, ...]
    unrecognised: int  # foreground pieces that no drawing explains
    clutter: float  # contrast left outside the objects, in fully bright pixels


def parse_images(images: Array) -> list[ParsedImage]:
    """Read the objects off images.

    Args:
        images: pixels in [0, 1], [N, 3, H, W]; non-finite pixels are read as background.

    Raises:
        ValueError: if the array is not [N, 3, H, W].
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"the verifier reads RGB images [N, 3, H, W] in [0, 1], got an array of shape {images.shape}")
    relative = np.nan_to_num(images.astype(np.float32) - _BG[:, None, None], nan=0.0, posinf=0.0, neginf=0.0)
    contrast = np.abs(relative).max(axis=1)  # [N, H, W]
    labelled = ndimage.label(contrast > _SEED_CONTRAST, structure=_IN_PLANE)
    seeds, number = cast("tuple[NDArray[np.intp], int]", labelled)
    labels = np.where(seeds > 0, seeds, ndimage.maximum_filter(seeds, size=(1, 3, 3)))
    pieces = _describe_pieces(relative, labels, number)
    return _collect(contrast, labels, pieces)


@dataclass(frozen=True, slots=True)
class _Pieces:
    image: NDArray[np.intp]  # [K] which image
    color: NDArray[np.intp]  # [K] index into the palette
    shape: NDArray[np.intp]  # [K] index into SHAPES
    area: Array  # [K]
    residual: Array  # [K] RMS over the piece's pixels
    x: Array  # [K]
    y: Array  # [K]
    radius: Array  # [K]
    iou: Array  # [K]

    @property
    def accepted(self) -> NDArray[np.bool_]:
        size_ok = (self.radius >= RADIUS[0] - _RADIUS_SLACK) & (self.radius <= RADIUS[1] + _RADIUS_SLACK)
        return (self.residual <= _MAX_RESIDUAL) & (self.iou >= _MIN_IOU) & size_ok


def _describe_pieces(relative: Array, labels: NDArray[np.intp], number: int) -> _Pieces:
    image, row, col = np.nonzero(labels)
    piece = labels[image, row, col] - 1  # [P] the piece of each foreground pixel
    pixels = relative[image, :, row, col]  # [P, 3]
    alpha = np.clip(pixels @ _PALETTE.T / np.square(_PALETTE).sum(axis=1), 0.0, 1.0)  # [P, C]
    misfit = np.square(pixels[:, None] - alpha[..., None] * _PALETTE).sum(axis=-1)  # [P, C]
    size = np.maximum(np.bincount(piece, minlength=number), 1)
    by_color = np.stack([np.bincount(piece, misfit[:, c], minlength=number) for c in range(len(_PALETTE))], axis=1)
    color = by_color.argmin(axis=1)
    residual = np.sqrt(by_color[np.arange(number), color] / size)
    alpha = alpha[np.arange(len(piece)), color[piece]]
    area = np.bincount(piece, alpha, minlength=number).astype(np.float64)
    weight = np.maximum(area, 1e-6)
    x = np.bincount(piece, alpha * (col + 0.5), minlength=number) / weight
    y = np.bincount(piece, alpha * (row + 0.5), minlength=number) / weight
    owner = np.zeros(number, dtype=np.intp)
    owner[piece] = image
    shape, iou, radius = _match_shapes(piece, row, col, alpha, x=x, y=y, area=area)
    return _Pieces(owner, color, shape, area, residual, x, y, radius, iou)


def _match_shapes(
    piece: NDArray[np.intp],
    row: NDArray[np.intp],
    col: NDArray[np.intp],
    alpha: Array,
    *,
    x: Array,
    y: Array,
    area: Array,
) -> tuple[NDArray[np.intp], Array, Array]:
    """The best shape of each piece, with its soft IoU and radius."""
    left, top = np.floor(x).astype(int) - _HALF, np.floor(y).astype(int) - _HALF
    side = 2 * _HALF + 1
    window = np.zeros((len(x), side, side), dtype=np.float32)
    u, v = col - left[piece], row - top[piece]
    inside = (u >= 0) & (u < side) & (v >= 0) & (v < side)
    window[piece[inside], v[inside], u[inside]] = alpha[inside]
    axis = np.arange(side, dtype=np.float32) + 0.5
    dx = np.broadcast_to((axis[None] + (left - x)[:, None])[:, None, :], window.shape).astype(np.float32)
    dy = np.broadcast_to((axis[None] + (top - y)[:, None])[:, :, None], window.shape).astype(np.float32)
    ious, radii = [], []
    for name in SHAPES:
        radius = np.sqrt(area / SHAPE_AREA[name]).astype(np.float32)
        drawn = coverage(name, dx, dy, radius[:, None, None])
        union = np.maximum(window, drawn).sum(axis=(1, 2)) + (area - window.sum(axis=(1, 2)))
        ious.append(np.minimum(window, drawn).sum(axis=(1, 2)) / np.maximum(union, 1e-6))
        radii.append(radius)
    best = np.stack(ious).argmax(axis=0) if len(x) else np.zeros(0, dtype=np.intp)
    pick = (best, np.arange(len(x)))
    return best, np.stack(ious)[pick], np.stack(radii)[pick]


def _collect(contrast: Array, labels: NDArray[np.intp], pieces: _Pieces) -> list[ParsedImage]:
    accepted = pieces.accepted
    explained = np.concatenate([[False], accepted])[labels]
    excess = np.maximum(contrast - _CLUTTER_FLOOR, 0.0) * ~explained
    clutter = excess.sum(axis=(1, 2))
    objects: list[list[Found]] = [[] for _ in range(len(contrast))]
    unrecognised = [0] * len(contrast)
    for k, image in enumerate(pieces.image):
        if accepted[k]:
            thing = Thing(_COLOR_NAMES[pieces.color[k]], SHAPES[pieces.shape[k]])
            found = Found(thing, float(pieces.x[k]), float(pieces.y[k]), float(pieces.radius[k]), float(pieces.iou[k]))
            objects[image].append(found)
        elif pieces.area[k] >= _MIN_AREA:
            unrecognised[image] += 1
    down, across = contrast.shape[1:]
    return [
        ParsedImage((across, down), tuple(found), pieces_left, float(left))
        for found, pieces_left, left in zip(objects, unrecognised, clutter, strict=True)
    ]
