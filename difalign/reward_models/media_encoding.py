"""Pictures as PNG or JPEG on the way to a reward in another process, for those who pay for every byte."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Encoding = Literal["raw", "png", "jpeg"]  # raw: the bytes as they are; png: the same pixels; jpeg: others
ENCODINGS: tuple[Encoding, ...] = ("raw", "png", "jpeg")
JPEG_QUALITY = 95
PNG_LEVEL = 1  # of deflate: a tenth of the default's time for some percent more bytes
_FORMATS: Mapping[str, str] = {"png": "PNG", "jpeg": "JPEG"}


@dataclass(frozen=True, slots=True)
class EncodedMedia:
    """Files one after the other; clips are stored frame by frame."""

    data: Tensor  # [bytes] uint8
    sizes: Tensor  # [pictures] int64, bytes of each file
    shape: tuple[int, ...]  # of what was encoded, [N, 3, H, W] or [N, F, 3, H, W]


def encode_media(media: Tensor, encoding: Encoding) -> EncodedMedia:
    """Files of uint8 pictures [N, 3, H, W] or clips [N, F, 3, H, W] on the CPU.

    ``jpeg`` (quality 95) changes pixels, and so scores.
    """
    from PIL import Image

    options = {"png": {"compress_level": PNG_LEVEL}, "jpeg": {"quality": JPEG_QUALITY}}[encoding]
    files: list[bytes] = []
    for picture in media.flatten(0, -4).permute(0, 2, 3, 1).contiguous().numpy():
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, format=_FORMATS[encoding], **options)
        files.append(buffer.getvalue())
    return EncodedMedia(
        data=torch.frombuffer(bytearray(b"".join(files)), dtype=torch.uint8),
        sizes=torch.tensor([len(file) for file in files]),
        shape=tuple(media.shape),
    )


def decode_media(encoded: EncodedMedia, encoding: Encoding, *, largest: int) -> Tensor:
    """The pictures, uint8 of ``encoded.shape``; ``largest`` bytes are decoded at most.

    Raises:
        ValueError: if the files are not of this format and shape, or would be larger.
    """
    shape = encoded.shape
    if len(shape) not in (4, 5) or shape[-3] != 3 or min(shape) < 1:
        raise ValueError(f"media of shape {list(shape)} are neither [N, 3, H, W] nor [N, F, 3, H, W]")
    number, height, width = (shape[0] if len(shape) == 4 else shape[0] * shape[1]), shape[-2], shape[-1]
    if number * height * width * 3 > largest:
        raise ValueError(f"media of shape {list(shape)} take more than {largest} bytes; send fewer at once")
    sizes, data = encoded.sizes, encoded.data
    if sizes.dtype != torch.int64 or sizes.shape != (number,) or data.dtype != torch.uint8 or data.dim() != 1:
        raise ValueError(f"{encoding} media are uint8 bytes [B] and int64 sizes [{number}]")
    if bool((sizes < 1).any()) or bool((sizes > len(data)).any()) or int(sizes.sum()) != len(data):
        raise ValueError(f"the sizes of the {encoding} files do not add up to {len(data)} bytes")
    decoded = torch.empty((number, 3, height, width), dtype=torch.uint8)
    for index, file in enumerate(data.split(sizes.tolist())):
        decoded[index] = _decode(file, encoding, height=height, width=width)
    return decoded.view(shape)


def _decode(file: Tensor, encoding: Encoding, *, height: int, width: int) -> Tensor:
    """One picture [3, H, W]; its size is compared before a pixel is decoded."""
    import numpy as np
    from PIL import Image

    try:
        with Image.open(io.BytesIO(file.numpy().tobytes()), formats=[_FORMATS[encoding]]) as picture:
            if picture.size != (width, height):
                raise ValueError(f"it is {picture.size[0]} x {picture.size[1]} and not {width} x {height}")
            pixels = np.array(picture.convert("RGB"))
    except Exception as error:  # the decoders raise all kinds: OSError, SyntaxError, struct.error, ...
        raise ValueError(f"a {encoding} file cannot be read ({error})") from error
    return torch.from_numpy(pixels).permute(2, 0, 1)
