"""Scorers of the published architectures with random weights: for time and memory, not for scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

    from difalign.core.protocols import RewardModel
    from difalign.reward_models.clip import ClipReward

PROMPTS = (
    "a photograph of a lighthouse on a cliff at dusk",
    "an oil painting of two dogs that run along a beach",
    "a bowl of ripe cherries on a wooden table in the sun",
    "an old tram in a narrow street after the rain",
    "a portrait of a violin maker in her workshop",
    "a paper boat on a puddle that mirrors the sky",
    "three red balloons above a field of wheat",
    "a glass of tea beside an open book and a pair of glasses",
)
SIDE = 224  # pixels that all of them read
_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_CLIP_WORDS, _BERT_WORDS = 49408, 30524


@dataclass(frozen=True, slots=True)
class Tower:
    """The size of a transformer."""

    width: int
    layers: int
    heads: int


@dataclass(frozen=True, slots=True)
class Size:
    """The size of a pair of networks."""

    vision: Tower
    text: Tower
    patch: int


# The published sizes, and what stands in for them where nothing else is asked for.
REAL: Mapping[str, Size] = {
    "clip-vit-l-14": Size(Tower(1024, 24, 16), Tower(768, 12, 12), 14),
    "clip-vit-h-14": Size(Tower(1280, 32, 16), Tower(1024, 24, 16), 14),
    "imagereward": Size(Tower(1024, 24, 16), Tower(768, 12, 12), 16),
    "aesthetic": Size(Tower(1024, 24, 16), Tower(768, 12, 12), 14),
    "clip-diversity": Size(Tower(1024, 24, 16), Tower(768, 12, 12), 14),
}
SMALL = Size(Tower(384, 6, 6), Tower(256, 6, 4), 32)


def clip(size: Size, tokenizer: CLIPTokenizer) -> ClipReward:
    """A CLIP of transformers; a random tower, read by the words of another one, which costs the same."""
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

    from difalign.reward_models.clip import ClipReward
    from difalign.reward_models.preprocessing import ImageInput

    special: Any = tokenizer  # whose numbers of special tokens are annotated as anything
    text = CLIPTextConfig(
        vocab_size=_CLIP_WORDS,
        hidden_size=size.text.width,
        intermediate_size=4 * size.text.width,
        num_hidden_layers=size.text.layers,
        num_attention_heads=size.text.heads,
        bos_token_id=special.bos_token_id,
        eos_token_id=special.eos_token_id,
        pad_token_id=special.pad_token_id,
    )
    vision = CLIPVisionConfig(
        hidden_size=size.vision.width,
        intermediate_size=4 * size.vision.width,
        num_hidden_layers=size.vision.layers,
        num_attention_heads=size.vision.heads,
        image_size=SIDE,
        patch_size=size.patch,
    )
    config: Any = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=size.text.width)
    wanted = ImageInput(size=SIDE, crop=(SIDE, SIDE), mean=_CLIP_MEAN, std=_CLIP_STD)
    return ClipReward(CLIPModel(config), tokenizer, wanted)


def aesthetic(size: Size, tokenizer: CLIPTokenizer) -> RewardModel:
    """The picture's half of a CLIP and the head of the aesthetic score."""
    from difalign.reward_models.aesthetic import AestheticReward
    from difalign.reward_models.score_head import score_head

    return AestheticReward(clip(size, tokenizer), score_head(size.text.width))


def diversity(size: Size, tokenizer: CLIPTokenizer) -> RewardModel:
    """The picture's half of a CLIP, and cosines between all pictures of a prompt."""
    from difalign.reward_models.diversity import DiversityReward

    return DiversityReward(clip(size, tokenizer))


def image_reward(size: Size, tokenizer: Any) -> RewardModel:
    """BLIP's picture network, and its text network with cross-attention, which runs once a picture."""
    from transformers import BlipTextConfig, BlipVisionConfig

    from difalign.reward_models.image_reward import ImageReward, ImageRewardNetwork, image_input

    vision = BlipVisionConfig(
        hidden_size=size.vision.width,
        intermediate_size=4 * size.vision.width,
        num_hidden_layers=size.vision.layers,
        num_attention_heads=size.vision.heads,
        image_size=SIDE,
        patch_size=size.patch,
    )
    text = BlipTextConfig(
        vocab_size=_BERT_WORDS,
        hidden_size=size.text.width,
        encoder_hidden_size=size.vision.width,
        intermediate_size=4 * size.text.width,
        num_hidden_layers=size.text.layers,
        num_attention_heads=size.text.heads,
        is_decoder=True,
    )
    return ImageReward(ImageRewardNetwork(vision, text), tokenizer, image_input(SIDE))


def clip_words() -> CLIPTokenizer:
    """The tokenizer of the shipped tiny CLIP."""
    from transformers import CLIPTokenizer

    from difalign.build.definitions import find_shipped

    folder = find_shipped("reward_models/tiny-clip")
    assert folder is not None
    return CLIPTokenizer.from_pretrained(folder)


MAKERS: Mapping[str, Callable[[Size, Any], Any]] = {
    "clip-vit-l-14": clip,
    "clip-vit-h-14": clip,
    "imagereward": image_reward,
    "aesthetic": aesthetic,
    "clip-diversity": diversity,
}


def make(name: str, *, real_size: bool, seed: int = 0) -> RewardModel:
    """One of ``MAKERS``, at the published size or at a small one; the weights are those of the seed."""
    tokenizer = bert_words() if name == "imagereward" else clip_words()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MAKERS[name](REAL[name] if real_size else SMALL, tokenizer)


def bert_words() -> Any:
    """A BERT tokenizer of the words that the benchmark's prompts are made of."""
    from transformers import BertTokenizer

    words = sorted({word for prompt in PROMPTS for word in prompt.lower().split()})
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    return BertTokenizer(vocab={word: number for number, word in enumerate([*special, *words])})
