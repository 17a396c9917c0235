"""How scorers want their pictures: exactly as their originals prepare them, or the same with a gradient to the pixels.

``exact`` rounds to 8 bits and resizes by Pillow, as the published code does. ``tensor`` stays in float32, so that a
gradient passes. ``auto`` is ``tensor`` where a gradient is asked for and ``exact`` elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

PreprocessMode = Literal["auto", "exact", "tensor"]
CropStart = Callable[[int], int]  # pixels too many along a side -> how many of them are cut off at its beginning

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP 2103.00020
_BICUBIC = 3  # PIL's number


class Layout(Protocol):
    """What a scorer's network is shown of a picture."""

    def exact(self, pixels: Tensor) -> Tensor:
        """[N, 3, H, W] in [0, 1] to [N, 3, h, w] float32 as the original does it; no gradient."""
        ...

    def tensor(self, pixels: Tensor) -> Tensor:
        """The same, differentiable and in float32 throughout."""
        ...


def preprocess(pixels: Tensor, wanted: Layout, *, mode: str = "auto") -> Tensor:
    """Resize, crop or pad, and normalise.

    Args:
        pixels: [N, 3, H, W] in [0, 1].
        wanted: what the network is shown.
        mode: ``exact``, ``tensor``, or ``auto`` for the one that the gradient asks for.

    Returns:
        [N, 3, h, w] float32, on the device of ``pixels``.

    Raises:
        ValueError: if the mode is unknown, or ``exact`` is asked for a gradient.
    """
    check_mode(mode)
    with_gradient = torch.is_grad_enabled() and pixels.requires_grad
    if mode == "exact" and with_gradient:
        raise ValueError(
            "preprocess = 'exact' rounds pixels to 8 bits, which has no gradient; use auto or tensor to follow one"
        )
    exact = mode == "exact" or (mode == "auto" and not with_gradient)
    return wanted.exact(pixels) if exact else wanted.tensor(pixels)


def check_mode(mode: str) -> str:
    """The mode, if there is such a one.

    Raises:
        ValueError: if not.
    """
    if mode not in get_args(PreprocessMode):
        raise ValueError(f"preprocess = {mode!r}: use one of: {', '.join(get_args(PreprocessMode))}")
    return mode


def eight_bit(pixels: Tensor) -> Tensor:
    """Pixels in [0, 1] rounded to 8 bits, as whoever saves a picture does; uint8, detached."""
    return (pixels.detach().float() * 255).round().clamp(0, 255).to(torch.uint8)


def shorter_side(pixels: Tensor, side: int | None) -> Tensor:
    """Pictures [N, 3, H, W] in [0, 1] of 8 bits, their shorter side resized by Pillow's bicubic filter; uint8, CPU.

    At the size that a scorer resizes to in that way, it scores them as it does the pictures themselves. None leaves the
    size as it is.
    """
    rounded = eight_bit(pixels).cpu()
    target = ImageInput(side, None, (), ())._target(*rounded.shape[-2:])
    return rounded if target == tuple(rounded.shape[-2:]) else _resize_by_pillow(rounded, target)


def transformers_crop_start(surplus: int) -> int:
    """Where image processors of transformers begin to crop: an odd pixel too many is cut off at the end."""
    return surplus // 2


def torchvision_crop_start(surplus: int) -> int:
    """Where torchvision's ``CenterCrop`` begins: halves are rounded to the even number."""
    return round(surplus / 2)


@dataclass(frozen=True, slots=True)
class ImageInput:
    """Resized by Pillow's bicubic filter, the middle cropped, normalised.

    ``size`` is the length of the shorter side, or height and width, or None for no resizing; ``crop`` is height and
    width of the middle that is kept, or None for all of it.
    """

    size: int | tuple[int, int] | None
    crop: tuple[int, int] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_start: CropStart = transformers_crop_start

    @classmethod
    def of_processor(cls, processor: Any) -> Self:
        """What a loaded image processor of transformers does.

        Raises:
            ValueError: if it resizes otherwise than by bicubic interpolation.
        """
        if processor.do_resize and int(processor.resample) != _BICUBIC:
            raise ValueError(f"the image processor resizes with filter {processor.resample}; only bicubic (3) is known")
        edge = processor.size.get("shortest_edge")
        size = edge if edge is not None else (processor.size["height"], processor.size["width"])
        cropped = bool(getattr(processor, "do_center_crop", None))
        crop = (processor.crop_size["height"], processor.crop_size["width"]) if cropped else None
        identity = (0.0,) * 3, (1.0,) * 3
        mean, std = (tuple(processor.image_mean), tuple(processor.image_std)) if processor.do_normalize else identity
        return cls(size if processor.do_resize else None, crop, mean, std)

    def exact(self, pixels: Tensor) -> Tensor:
        """As ``CLIPImageProcessorPil``, or torchvision's transforms on Pillow pictures, equal to the last bit."""
        target = self._target(*pixels.shape[-2:])
        bytes_ = eight_bit(pixels)
        if target != tuple(pixels.shape[-2:]):
            bytes_ = _resize_by_pillow(bytes_, target).to(pixels.device)
        return _normalise(self._crop(bytes_).float() / 255, self.mean, self.std)

    def tensor(self, pixels: Tensor) -> Tensor:
        """Without rounding back to 8 bits after each pass.

        On 8-bit pictures this differs from ``exact`` by less than one grey level and a half where they are resized, and
        not where they are not, unless the two axes are scaled differently and the filter overshoots: Pillow resizes
        the horizontal axis first, as is done here, but only rounds where it leaves [0, 255].
        """
        height, width = pixels.shape[-2:]
        target, pixels = self._target(height, width), pixels.float()
        # One axis after the other, cut to [0, 1] in between: Pillow's bicubic filter overshoots edges no further.
        for shape in ((height, target[1]), target):
            if tuple(pixels.shape[-2:]) != shape:
                pixels = _bicubic(pixels, shape).clamp(0, 1)
        return _normalise(self._crop(pixels), self.mean, self.std)

    def _target(self, height: int, width: int) -> tuple[int, int]:
        if self.size is None:
            return height, width
        if isinstance(self.size, tuple):
            return self.size
        short = min(height, width)
        return int(self.size * height / short), int(self.size * width / short)

    def _crop(self, pixels: Tensor) -> Tensor:
        if self.crop is None:
            return pixels
        (height, width), (down, across) = pixels.shape[-2:], self.crop
        if height < down or width < across:
            raise ValueError(
                f"images of {width}x{height} pixels are too small to crop {across}x{down} from; enlarge them"
            )
        top, left = self.crop_start(height - down), self.crop_start(width - across)
        return pixels[..., top : top + down, left : left + across]


@dataclass(frozen=True, slots=True)
class PaddedInput:
    """The longer side resized to ``side``, the rest filled with zeros before normalisation: HPSv2 (2306.09341), code.

    The original turns the 8-bit picture into float32 first and resizes that, by a bicubic filter with antialiasing and
    without cutting off where it overshoots. A picture whose longer side has the right length already is not padded
    there, so that one that is no square cannot be scored; here it is padded as any other.
    """

    side: int
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD

    def exact(self, pixels: Tensor) -> Tensor:
        """As the original, equal to the last bit."""
        return self.tensor(eight_bit(pixels).float() / 255)

    def tensor(self, pixels: Tensor) -> Tensor:
        """The same without rounding to 8 bits."""
        height, width = pixels.shape[-2:]
        scale = self.side / float(max(height, width))
        down, across = round(height * scale), round(width * scale)
        if min(down, across) < 1:
            raise ValueError(
                f"images of {width}x{height} pixels are too narrow to be {self.side} long; crop them first"
            )
        pixels = pixels.float()
        if (down, across) != (height, width):
            pixels = _bicubic(pixels, (down, across))
        top, left = (self.side - down) // 2, (self.side - across) // 2
        pixels = F.pad(pixels, (left, self.side - across - left, top, self.side - down - top))
        return _normalise(pixels, self.mean, self.std)


def _bicubic(pixels: Tensor, shape: tuple[int, int]) -> Tensor:
    return F.interpolate(pixels, size=shape, mode="bicubic", antialias=True, align_corners=False)


def _normalise(pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    centre, spread = (pixels.new_tensor(values).view(1, -1, 1, 1) for values in (mean, std))
    return (pixels - centre) / spread


def _resize_by_pillow(pixels: Tensor, target: tuple[int, int]) -> Tensor:
    """uint8 [N, 3, H, W] to [N, 3, *target] on the CPU, where Pillow works."""
    import numpy as np
    from PIL import Image

    pictures = pixels.permute(0, 2, 3, 1).cpu().numpy()
    size = (target[1], target[0])
    resized = [np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC)) for picture in pictures]
    return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2)
