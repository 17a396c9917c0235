"""How well an image fits its prompt by a CLIP model: a learned reward with a gradient to the pixels."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, final, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from difalign.core.types import Metadata, RewardOutput

if TYPE_CHECKING:
    from transformers import CLIPModel, CLIPTokenizer

ScaleName = Literal["cosine", "logit", "clipscore"]
Scale = Callable[[Tensor, Tensor], Tensor]  # (cosine [N], exp(logit_scale) scalar) -> score [N]

SCALES: Mapping[str, Scale] = {
    "cosine": lambda cosine, _: cosine,
    "logit": lambda cosine, temperature: temperature * cosine,  # CLIP (arXiv 2103.00020), PickScore (arXiv 2305.01569)
    "clipscore": lambda cosine, _: 2.5 * cosine.clamp(min=0),  # CLIPScore (arXiv 2104.08718), equation 1
}
_DTYPES = ("float32", "bfloat16", "float16")
_BICUBIC = 3  # PIL's number


@dataclass(frozen=True, slots=True)
class ImageInput:
    """How a CLIP model wants its pictures, as a ``CLIPImageProcessor`` says it.

    ``size`` is the length of the shorter side, or height and width, or None for no resizing; ``crop`` is height and
    width of the middle that is kept, or None for all of it.
    """

    size: int | tuple[int, int] | None
    crop: tuple[int, int] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of_processor(cls, processor: Any) -> Self:
        """What a loaded image processor does.

        Raises:
            ValueError: if it resizes otherwise than by bicubic interpolation.
        """
        if processor.do_resize and int(processor.resample) != _BICUBIC:
            raise ValueError(f"the image processor resizes with filter {processor.resample}; only bicubic (3) is known")
        edge = processor.size.get("shortest_edge")
        size = edge if edge is not None else (processor.size["height"], processor.size["width"])
        crop = (processor.crop_size["height"], processor.crop_size["width"])
        identity = (0.0,) * 3, (1.0,) * 3
        stated = tuple(processor.image_mean), tuple(processor.image_std)
        mean, std = stated if processor.do_normalize else identity
        return cls(size if processor.do_resize else None, crop if processor.do_center_crop else None, mean, std)


def preprocess(pixels: Tensor, wanted: ImageInput) -> Tensor:
    """Resize, crop the middle and normalise, differentiably.

    What ``CLIPImageProcessor`` does to 8-bit pictures without rounding back to 8 bits after each pass. On 8-bit
    pictures the two differ by less than one grey level and a half where they resize, and not where they do not. (Where
    the two axes are scaled differently and the filter overshoots, processors differ among themselves: PIL's picks which
    axis comes first, torchvision's begins with the horizontal one, as is done here.)

    Args:
        pixels: [N, 3, H, W] in [0, 1].
        wanted: what the model wants.

    Returns:
        [N, 3, h, w] float32.
    """
    pixels = _crop(_resize(pixels.float(), wanted.size), wanted.crop)
    mean, std = (pixels.new_tensor(values).view(1, -1, 1, 1) for values in (wanted.mean, wanted.std))
    return (pixels - mean) / std


def _resize(pixels: Tensor, size: int | tuple[int, int] | None) -> Tensor:
    if size is None:
        return pixels
    across, down = pixels.shape[-1], pixels.shape[-2]
    if isinstance(size, int):
        short = min(across, down)
        down, across = int(size * down / short), int(size * across / short)
    else:
        down, across = size
    # One axis after the other, cut to [0, 1] in between: PIL's bicubic filter overshoots edges no further.
    for shape in ((pixels.shape[-2], across), (down, across)):
        if tuple(pixels.shape[-2:]) != shape:
            wide = F.interpolate(pixels, size=shape, mode="bicubic", antialias=True, align_corners=False)
            pixels = wide.clamp(0, 1)
    return pixels


def _crop(pixels: Tensor, crop: tuple[int, int] | None) -> Tensor:
    if crop is None:
        return pixels
    down, across = pixels.shape[-2:]
    if down < crop[0] or across < crop[1]:
        raise ValueError(
            f"images of {across}x{down} pixels are too small to crop {crop[1]}x{crop[0]} from; enlarge them"
        )
    top, left = (down - crop[0]) // 2, (across - crop[1]) // 2
    return pixels[..., top : top + crop[0], left : left + crop[1]]


@final
class ClipReward:
    """The cosine between the embeddings of a picture and of its prompt, in the unit that ``scale`` names.

    ``cosine`` lies in [-1, 1]; ``logit`` multiplies it by the model's learned temperature, as CLIP does before its
    softmax and PickScore (arXiv 2305.01569) as its score; ``clipscore`` is 2.5 max(cosine, 0) (arXiv 2104.08718).
    The weights are frozen; the gradient goes to the pixels.
    """

    differentiable = True

    def __init__(
        self,
        model: CLIPModel,
        tokenizer: CLIPTokenizer,
        wanted: ImageInput,
        *,
        scale: str = "cosine",
        micro_batch: int = 64,
        name: str = "clip",
    ) -> None:
        if scale not in SCALES:
            raise ValueError(f"scale = {scale!r}: use one of: {', '.join(get_args(ScaleName))}")
        if micro_batch < 1:
            raise ValueError(f"micro_batch = {micro_batch}: must be at least 1")
        self.name = name
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.wanted = wanted
        text_config: Any = model.config.text_config  # annotated as a mapping or none
        self._longest = text_config.max_position_embeddings
        self._scale = SCALES[scale]
        self._micro_batch = micro_batch

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        scale: str = "cosine",
        processor: str | None = None,
        micro_batch: int = 64,
        dtype: str = "float32",
        device: str | torch.device = "cpu",
        revision: str | None = None,
        name: str = "clip",
    ) -> Self:
        """Load what ``CLIPModel.save_pretrained`` and ``CLIPProcessor.save_pretrained`` wrote, or a hub repository.

        Args:
            source: a folder, or an id of the model hub.
            scale: the unit of the score, a key of ``SCALES``.
            processor: the folder or repository with tokenizer and image processor, if that is another.
            micro_batch: pictures a forward; memory only.
            dtype: in which the network computes; scores are float32 whatever it is.
            device: where it computes.
            revision: of a hub repository.
            name: of the reward.

        Raises:
            ValueError: if the folder is missing, holds another model or none, or its weights are incomplete.
        """
        from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

        if dtype not in _DTYPES:
            raise ValueError(f"dtype = {dtype!r}: use one of: {', '.join(_DTYPES)}")
        _check_source(source)
        at: dict[str, Any] = {} if revision is None else {"revision": revision}
        load: Any = CLIPModel.from_pretrained  # its annotation does not know output_loading_info
        model, info = load(source, dtype=getattr(torch, dtype), output_loading_info=True, **at)
        if info["missing_keys"]:
            raise ValueError(
                f"{source}: has no weights for {sorted(info['missing_keys'])[0]}; save the whole CLIPModel"
            )
        beside, at = (source, at) if processor is None else (processor, {})  # a revision is of one repository
        tokenizer = CLIPTokenizer.from_pretrained(beside, **at)
        wanted = ImageInput.of_processor(CLIPImageProcessor.from_pretrained(beside, **at))
        return cls(model.to(device), tokenizer, wanted, scale=scale, micro_batch=micro_batch, name=name)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.model.logit_scale.device

    def score(
        self, media: Tensor, prompts: Sequence[str], *, metadata: Metadata | None = None, sigma: float | None = None
    ) -> RewardOutput:
        """Score pixels in [0, 1], [N, 3, H, W], against one prompt each; ``sigma`` is not used.

        Raises:
            ValueError: if the numbers differ or the media are no pictures.
        """
        if media.ndim != 4 or media.shape[1] != 3:
            raise ValueError(
                f"CLIP reads RGB images [N, 3, H, W] in [0, 1], got a tensor of shape {tuple(media.shape)}"
            )
        if len(media) != len(prompts):
            raise ValueError(f"{len(media)} images but {len(prompts)} prompts; give one prompt an image")
        cosine = (self.embed_images(media) * self.embed_texts(prompts)).sum(dim=-1)
        return RewardOutput(self._scale(cosine, self.model.logit_scale.float().exp()).to(media.device))

    def embed_images(self, media: Tensor) -> Tensor:
        """Unit vectors of pictures [N, 3, H, W] in [0, 1], [N, D] float32; differentiable."""
        parts = [self._embed(part) for part in media.split(self._micro_batch)]
        return F.normalize(torch.cat(parts).float(), dim=-1)

    def _embed(self, media: Tensor) -> Tensor:
        pixels = preprocess(media.to(self.device), self.wanted).to(self.model.dtype)
        return self.model.visual_projection(self.model.vision_model(pixel_values=pixels).pooler_output)

    @torch.no_grad()
    def embed_texts(self, prompts: Sequence[str]) -> Tensor:
        """Unit vectors of prompts, [N, D] float32; each distinct prompt is read once, cut to the model's length."""
        distinct = {prompt: row for row, prompt in enumerate(dict.fromkeys(prompts))}
        texts, parts = list(distinct), []
        for start in range(0, len(texts), self._micro_batch):
            batch = self.tokenizer(
                texts[start : start + self._micro_batch],
                padding=True,
                truncation=True,
                max_length=self._longest,
                return_tensors="pt",
            ).to(self.device)
            hidden = self.model.text_model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
            parts.append(self.model.text_projection(hidden.pooler_output).float())
        rows = torch.tensor([distinct[prompt] for prompt in prompts], device=self.device)
        return F.normalize(torch.cat(parts), dim=-1)[rows]


def _check_source(source: str | Path) -> None:
    """Refuse a folder that is missing or holds something else, in words; a hub id is left to the hub."""
    folder = Path(source)
    if not folder.is_dir():
        if isinstance(source, Path) or folder.is_absolute() or str(source).startswith("."):
            raise ValueError(f"{source}: there is no such folder; give the folder of a saved CLIPModel")
        return
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError):
        raise ValueError(
            f"{source}: has no readable config.json; give a folder that CLIPModel.save_pretrained wrote"
        ) from None
    if kind != "clip":
        raise ValueError(f"{source}: holds a model of type {kind!r}, not a CLIPModel; give the folder of a CLIPModel")
