"""What networks are shown: exactly what their originals show them, or nearly that with a gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import functional as tv
from transformers import BitImageProcessor, BlipImageProcessor, CLIPImageProcessor, CLIPImageProcessorPil
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from difalign.reward_models.preprocessing import (
    CLIP_MEAN,
    CLIP_STD,
    ImageInput,
    PaddedInput,
    eight_bit,
    preprocess,
    shorter_side,
    torchvision_crop_start,
    transformers_crop_start,
)
from tests.reward_models.pictures import GREY_LEVEL, as_pillow, eight_bit_pictures

SIDE = 24
SIZES = [(24, 24), (40, 40), (48, 30), (25, 61), (97, 64), (16, 20), (31, 24)]
OPTIONS = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
TORCHVISION = ImageInput(SIDE, (SIDE, SIDE), CLIP_MEAN, CLIP_STD, torchvision_crop_start)


def levels(ours: Tensor, expected: Tensor, wanted: ImageInput | PaddedInput) -> Tensor:
    """The difference in grey levels."""
    assert ours.shape == expected.shape
    return ((ours - expected) * torch.tensor(wanted.std).view(1, 3, 1, 1) / GREY_LEVEL).abs()


@pytest.mark.golden
@pytest.mark.parametrize(("height", "width"), SIZES, ids=str)
@pytest.mark.parametrize(
    "processor",
    [
        CLIPImageProcessorPil(**OPTIONS),
        CLIPImageProcessorPil(size={"height": 20, "width": 28}, do_center_crop=False),
        CLIPImageProcessorPil(do_resize=False, crop_size={"height": 15, "width": 16}),
        CLIPImageProcessorPil(size={"shortest_edge": 26}, crop_size={"height": 21, "width": 21}, do_normalize=False),
        BlipImageProcessorPil(size={"height": 20, "width": 20}),
        BitImageProcessorPil(size={"shortest_edge": 27}, crop_size={"height": 22, "width": 22}),
    ],
    ids=["clip", "two sides", "crop alone", "not normalised", "blip", "dino"],
)
def test_exact_is_the_processor_of_pillow(processor, height: int, width: int):
    pixels = eight_bit_pictures(2, height, width)
    expected = processor(as_pillow(pixels), return_tensors="pt")["pixel_values"]
    assert torch.equal(preprocess(pixels, ImageInput.of_processor(processor)), expected)


@pytest.mark.golden
@pytest.mark.parametrize(("height", "width"), SIZES, ids=str)
def test_exact_is_torchvision_on_pillow(height: int, width: int):
    """As ImageReward's and OpenAI's code have it; where a surplus is odd, it does not begin to crop where HF does."""
    original = transforms.Compose(
        [
            transforms.Resize(SIDE, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(SIDE),
            transforms.ToTensor(),
            transforms.Normalize(CLIP_MEAN, CLIP_STD),
        ]
    )
    pixels = eight_bit_pictures(2, height, width)
    expected = torch.stack([original(picture) for picture in as_pillow(pixels)])
    assert torch.equal(preprocess(pixels, TORCHVISION), expected)


def test_crops_begin_where_each_library_begins():
    assert [transformers_crop_start(surplus) for surplus in range(8)] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert [torchvision_crop_start(surplus) for surplus in range(8)] == [0, 0, 1, 2, 2, 2, 3, 4]
    for surplus in range(8):
        picture = as_pillow(eight_bit_pictures(1, 10, 10 + surplus))[0]
        whole, cropped = tv.pil_to_tensor(picture), tv.pil_to_tensor(tv.center_crop(picture, [10, 10]))
        start = torchvision_crop_start(surplus)
        assert torch.equal(whole[..., start : start + 10], cropped)


def padded_by_torchvision(pixels: Tensor, side: int) -> Tensor:
    """What HPSv2's code does to one picture after ToTensor, [3, H, W] float32."""
    height, width = pixels.shape[1:]
    scale = side / max(height, width)
    down, across = round(height * scale), round(width * scale)
    pixels = tv.resize(pixels, [down, across], transforms.InterpolationMode.BICUBIC)
    high, wide = side - down, side - across
    pixels = tv.pad(pixels, [wide // 2, high // 2, wide - wide // 2, high - high // 2], fill=0)
    return tv.normalize(pixels, list(CLIP_MEAN), list(CLIP_STD))


@pytest.mark.golden
@pytest.mark.parametrize(("height", "width"), [*SIZES, (24, 20), (7, 50)], ids=str)
def test_padding_is_that_of_torchvision(height: int, width: int):
    pixels = eight_bit_pictures(2, height, width)
    wanted = PaddedInput(SIDE)
    expected = torch.stack([padded_by_torchvision(tv.to_tensor(picture), SIDE) for picture in as_pillow(pixels)])
    exact = preprocess(pixels, wanted)
    assert torch.equal(exact, expected)
    assert exact.shape[-2:] == (SIDE, SIDE)
    # Its resizing is in float32 anyway, so that only rounding to 8 bits stands between the modes.
    finer = (pixels + 0.3 * GREY_LEVEL).clamp(0, 1)
    assert levels(preprocess(finer, wanted, mode="tensor"), preprocess(finer, wanted), wanted).max() < 1.0
    assert torch.equal(preprocess(pixels, wanted, mode="tensor"), exact)


@pytest.mark.parametrize("wanted", [TORCHVISION, PaddedInput(SIDE)], ids=["cropped", "padded"])
def test_the_mode_follows_the_gradient(wanted: ImageInput | PaddedInput):
    pixels = (eight_bit_pictures(2, 40, 33) + 0.2 * GREY_LEVEL).clamp(0, 1)
    exact, tensor = (preprocess(pixels, wanted, mode=mode) for mode in ("exact", "tensor"))
    assert not torch.equal(exact, tensor)
    assert torch.equal(preprocess(pixels, wanted), exact)
    followed = pixels.clone().requires_grad_(True)
    out = preprocess(followed, wanted)
    assert torch.equal(out, tensor)
    out.sum().backward()
    assert followed.grad is not None
    assert (followed.grad != 0).any()
    with torch.no_grad():
        assert torch.equal(preprocess(followed, wanted), exact)
    with pytest.raises(ValueError, match="rounds pixels to 8 bits, which has no gradient; use auto or tensor"):
        preprocess(followed, wanted, mode="exact")
    with pytest.raises(ValueError, match="preprocess = 'nearest': use one of: auto, exact, tensor"):
        preprocess(pixels, wanted, mode="nearest")


@pytest.mark.parametrize(("height", "width"), SIZES, ids=str)
def test_tensor_mode_is_near_the_exact_one(height: int, width: int):
    """Two roundings to 8 bits lie between them; a filter that overshoots adds what is cut off differently."""
    pixels = (64 + 127 * eight_bit_pictures(3, height, width)).round() / 255
    apart = levels(preprocess(pixels, TORCHVISION, mode="tensor"), preprocess(pixels, TORCHVISION), TORCHVISION)
    resized = min(height, width) != SIDE
    assert apart.max() < (1.5 if resized else 1e-3)
    assert apart.mean() < (0.5 if resized else 1e-4)


@pytest.mark.parametrize(("height", "width"), SIZES[:-1], ids=str)
def test_tensor_mode_is_near_the_default_processor(height: int, width: int):
    """What ``CLIPImageProcessor`` rounds to 8 bits after each of two passes may differ by a level and a half."""
    processor = CLIPImageProcessor(**OPTIONS)
    pixels = eight_bit_pictures(3, height, width)
    expected = processor(as_pillow(pixels), return_tensors="pt")["pixel_values"]
    wanted = ImageInput.of_processor(processor)
    apart = levels(preprocess(pixels, wanted, mode="tensor"), expected, wanted)
    resized = (height, width) != (24, 24)
    assert apart.max() < (1.5 if resized else 1e-3)
    assert apart.mean() < (0.5 if resized else 1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"size": {"height": 20, "width": 28}, "do_center_crop": False},
        {"do_resize": False, "crop_size": {"height": 15, "width": 22}},
        {"size": {"shortest_edge": 26}, "crop_size": {"height": 21, "width": 21}, "do_normalize": False},
    ],
    ids=["two sides", "crop alone", "crop after resizing, not normalised"],
)
def test_tensor_mode_follows_every_setting_of_the_processor(options: dict):
    processor = CLIPImageProcessor(**options)
    # Without black and white, so that no pass overshoots what 8 bits hold: where one does, the result depends on which
    # axis comes first, and the processors of PIL and of torchvision differ from one another by up to nine levels.
    pixels = (64 + 127 * eight_bit_pictures(2, 40, 33)).round() / 255
    expected = processor(as_pillow(pixels), return_tensors="pt")["pixel_values"]
    ours = preprocess(pixels, ImageInput.of_processor(processor), mode="tensor")
    assert ours.shape == expected.shape
    assert (ours - expected).abs().max() < 1.5 * GREY_LEVEL / 0.26


def test_processors_without_a_crop_are_read():
    assert ImageInput.of_processor(BlipImageProcessor(size={"height": 30, "width": 30})).crop is None
    dino = ImageInput.of_processor(BitImageProcessor(size={"shortest_edge": 256}, resample=3))
    assert (dino.size, dino.crop) == (256, (224, 224))


def test_eight_bits_are_rounded_to_the_nearest():
    pixels = torch.tensor([0.0, 0.499 / 255, 0.501 / 255, 254.6 / 255, 1.0, 1.001, -0.001])
    assert eight_bit(pixels).tolist() == [0, 0, 1, 255, 255, 255, 0]
    assert eight_bit(pixels.bfloat16()).dtype == torch.uint8


def test_another_filter_is_refused():
    processor = CLIPImageProcessor(resample=2)
    with pytest.raises(ValueError, match="only bicubic"):
        ImageInput.of_processor(processor)


@pytest.mark.parametrize("mode", ["exact", "tensor"])
def test_pictures_that_cannot_be_shown_are_refused(mode: str):
    wanted = ImageInput(None, (30, 30), (0.0,) * 3, (1.0,) * 3)
    with pytest.raises(ValueError, match="images of 24x24 pixels are too small to crop 30x30"):
        preprocess(torch.zeros(1, 3, 24, 24), wanted, mode=mode)
    with pytest.raises(ValueError, match="images of 100x1 pixels are too narrow"):
        preprocess(torch.zeros(1, 3, 1, 100), PaddedInput(24), mode=mode)


@pytest.mark.parametrize(("height", "width"), [(37, 53), (64, 20), (24, 24)])
def test_a_stored_shorter_side_is_all_that_a_scorer_sees(height: int, width: int):
    """Pictures kept at the size that the scorer resizes to are scored as the pictures themselves, to the last bit."""
    pictures = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    wanted = ImageInput(24, (24, 24), CLIP_MEAN, CLIP_STD)
    stored = shorter_side(pictures, 24)
    assert stored.dtype == torch.uint8
    assert min(stored.shape[-2:]) == 24
    assert torch.equal(wanted.exact(stored.float() / 255), wanted.exact(pictures))
    assert shorter_side(pictures, None).shape == pictures.shape
