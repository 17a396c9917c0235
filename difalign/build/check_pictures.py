"""A few fixed pictures with prompts, drawn by code: what rewards are checked on.

Nothing of them is stored. They are made of scenes, lettering, waves and noise by integer arithmetic and float64, and
rounded to 8 bits, so that they are the same on every machine; ``digest`` says whether they are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from difalign.embedded.render import render
from difalign.embedded.scenes import draw_layout, parse_caption

_SEED = 20240607
EDGE = 192  # pixels a side of what is no scene

# Rows of 5 bits, the leftmost the highest; a typeface of our own, so that no font's release moves a score.
_LETTERS: Mapping[str, tuple[int, ...]] = {
    "C": (0b01110, 0b10001, 0b10000, 0b10000, 0b10000, 0b10001, 0b01110),
    "E": (0b11111, 0b10000, 0b10000, 0b11110, 0b10000, 0b10000, 0b11111),
    "F": (0b11111, 0b10000, 0b10000, 0b11110, 0b10000, 0b10000, 0b10000),
    "N": (0b10001, 0b11001, 0b11001, 0b10101, 0b10011, 0b10011, 0b10001),
    "O": (0b01110, 0b10001, 0b10001, 0b10001, 0b10001, 0b10001, 0b01110),
    "P": (0b11110, 0b10001, 0b10001, 0b11110, 0b10000, 0b10000, 0b10000),
    "S": (0b01111, 0b10000, 0b10000, 0b01110, 0b00001, 0b00001, 0b11110),
    "T": (0b11111, 0b00100, 0b00100, 0b00100, 0b00100, 0b00100, 0b00100),
}
_STROKE = 4  # pixels a bit
_SOFTENING = 2  # passes of a small blur, which rounds the corners of letters


@dataclass(frozen=True, slots=True)
class CheckPicture:
    """A picture with what is said of it."""

    pixels: NDArray[np.uint8]  # [H, W, 3]; scenes are of their own size, which is small
    prompt: str
    metadata: Mapping[str, object] = field(default_factory=dict)


def check_pictures() -> tuple[CheckPicture, ...]:
    """Scenes that show their caption, or another one; words that are written as asked for, or not; waves and noise.

    The metadata is GenEval's, for rewards that count objects, and a class of ImageNet.
    """
    rng = np.random.default_rng(_SEED)
    return (
        CheckPicture(_scene("a red circle", rng), "a red circle", _clauses("sports ball", 1, "red", 852)),
        CheckPicture(_scene("two blue squares", rng), "two blue squares", _clauses("book", 2, "blue", 921)),
        CheckPicture(_scene("a white cross", rng), "three yellow triangles", _clauses("kite", 3, "yellow", 701)),
        CheckPicture(
            _scene("a red circle left of a green cross", rng),
            "a red circle left of a green cross",
            _clauses("sports ball", 1, "green", 768),
        ),
        CheckPicture(_lettering("OPEN"), 'a door with a sign that says "OPEN"', _clauses("book", 1, "white", 921)),
        CheckPicture(_lettering("COFFEE"), 'a cup with the word "TOFFEE" on it', _clauses("cup", 1, "white", 968)),
        CheckPicture(_waves(), "an oil painting of the sea at night", _clauses("boat", 1, "blue", 978)),
        CheckPicture(_noise(rng), 'a wall with the word "STOP"', _clauses("stop sign", 1, "red", 919)),
    )


def digest(pictures: Sequence[CheckPicture]) -> str:
    """SHA-256 of all pixels, prompts and metadata."""
    content = hashlib.sha256()
    for picture in pictures:
        content.update(picture.pixels.tobytes())
        content.update(repr((picture.prompt, sorted(picture.metadata.items()))).encode())
    return content.hexdigest()


def _clauses(name: str, count: int, color: str, target_class: int) -> dict[str, object]:
    clause = {"class": name, "count": count, "color": color}
    return {"tag": "counting", "include": [clause], "exclude": [], "target_class": target_class}


def _scene(caption: str, rng: np.random.Generator) -> NDArray[np.uint8]:
    return _rounded(render([draw_layout(parse_caption(caption), rng)])[0].transpose(1, 2, 0))


def _lettering(word: str) -> NDArray[np.uint8]:
    """Dark letters in the middle of a light page."""
    bits = np.array([[[row >> (4 - x) & 1 for x in range(5)] for row in _LETTERS[letter]] for letter in word])
    line = np.concatenate([np.pad(letter, ((0, 0), (0, 1))) for letter in bits], axis=1)[:, :-1]
    ink = np.repeat(np.repeat(line, _STROKE, axis=0), _STROKE, axis=1).astype(np.float64)
    page = np.zeros((EDGE, EDGE))
    top, left = (EDGE - ink.shape[0]) // 2, (EDGE - ink.shape[1]) // 2
    page[top : top + ink.shape[0], left : left + ink.shape[1]] = ink
    for _ in range(_SOFTENING):
        page = (2 * page + np.roll(page, 1, 0) + np.roll(page, -1, 0)) / 4
        page = (2 * page + np.roll(page, 1, 1) + np.roll(page, -1, 1)) / 4
    return _rounded(np.repeat((0.93 - 0.8 * page)[:, :, None], 3, axis=2))


def _waves() -> NDArray[np.uint8]:
    """Triangular waves of three periods, one a colour: no sine, whose last digit differs between machines."""
    y, x = np.mgrid[0:EDGE, 0:EDGE]
    bands = [np.abs((x * a + y * b) % 256 - 128) / 128.0 for a, b in ((3, 5), (1, 7), (4, 2))]
    return _rounded(np.stack(bands, axis=2) * np.array([0.2, 0.5, 0.8]) + 0.1)


def _noise(rng: np.random.Generator) -> NDArray[np.uint8]:
    return rng.integers(0, 256, size=(EDGE, EDGE, 3), dtype=np.uint8)


def _rounded(pixels: NDArray[np.floating]) -> NDArray[np.uint8]:
    return np.rint(255.0 * pixels.astype(np.float64)).astype(np.uint8)
