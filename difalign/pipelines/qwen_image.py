"""Qwen-Image: a rectified-flow transformer, Qwen2.5-VL as its text encoder, a 3D autoencoder of one frame.

Qwen-Image technical report, arXiv 2508.02324. Texts differ in length and are not cut to one: a table of several is
padded, with a mask. A text's padding depends on the company in which it was encoded, so that a row may differ by
rounding between such companies, as it may between batch sizes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

from torch import Tensor, nn

from difalign.pipelines.guidance import Guides, NormKeepingGuidance
from difalign.pipelines.latents import decode_pixels
from difalign.pipelines.packed import PackedFamily
from difalign.pipelines.prompt_cache import Embedding, Encode, Stack, padded

_GUIDANCE_SCALE = 4.0  # diffusers' default
_NEGATIVE_PROMPT = " "  # the model's card; diffusers has none, and does not guide unless it is given one


@final
@dataclass(frozen=True, slots=True)
class QwenImageParts:
    """One language model as text encoder, guidance that keeps lengths, and an autoencoder of single frames."""

    pipe: Any  # a diffusers QwenImagePipeline

    @property
    def first_layer(self) -> nn.Module:
        """What reads the tokens of an image."""
        return self.pipe.transformer.img_in

    @property
    def stack(self) -> Stack:
        """Texts keep their lengths."""
        return padded

    def guidance(self, scale: float | None, *, detach_uncond: bool) -> Guides:
        """Classifier-free, with the length of the conditional prediction.

        Raises:
            ValueError: for a network that takes its guidance as an input.
        """
        if self.pipe.transformer.config.guidance_embeds:
            raise ValueError("the network takes its guidance as an input (a distilled model): this adapter has none")
        return NormKeepingGuidance(_GUIDANCE_SCALE if scale is None else scale, detach_uncond)

    def encoders(self) -> list[nn.Module]:
        """Qwen2.5-VL."""
        return [self.pipe.text_encoder]

    def encode(self, text: str, *, length: int) -> Embedding:
        """Its last hidden states after the instruction, [1, L, D] with L <= length."""
        embeds, mask = self.pipe.encode_prompt([text], device=self.pipe.text_encoder.device, max_sequence_length=length)
        assert mask is None, "one text alone has no padding"
        return (embeds,)

    def negative(self, encode: Encode) -> Embedding:
        """Those of a blank."""
        return encode(_NEGATIVE_PROMPT)

    def inputs(self, texts: Embedding, tokens: tuple[int, int], scale: float) -> dict[str, Any]:  # noqa: ARG002
        """What the transformer takes of them, with a mask where the table of texts has one."""
        embeds, *mask = texts
        return {
            "encoder_hidden_states": embeds,
            "encoder_hidden_states_mask": mask[0] if mask else None,
            "img_shapes": [[(1, *tokens)]] * embeds.shape[0],
        }

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels in [0, 1], [N, 3, H, W]: the only frame of a clip, each channel with its own mean and std."""
        config = self.pipe.vae.config
        mean, std = (latents.new_tensor(v).view(1, -1, 1, 1, 1) for v in (config.latents_mean, config.latents_std))
        z = latents.unsqueeze(2) / (1.0 / std) + mean  # as diffusers rounds it
        return decode_pixels(self.pipe.vae, z)[:, :, 0]


QWEN_IMAGE = PackedFamily(
    pipeline_class="QwenImagePipeline",
    parts=QwenImageParts,
    lora_targets=(  # Flow-GRPO, released Qwen-Image trainer: attention and feed-forwards of both streams
        "attn.add_k_proj",
        "attn.add_q_proj",
        "attn.add_v_proj",
        "attn.to_add_out",
        "attn.to_k",
        "attn.to_out.0",
        "attn.to_q",
        "attn.to_v",
        "img_mlp.net.0.proj",
        "img_mlp.net.2",
        "txt_mlp.net.0.proj",
        "txt_mlp.net.2",
    ),
    longest_text=1024,
)
