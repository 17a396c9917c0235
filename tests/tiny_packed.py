"""Builders of tiny FLUX and Qwen-Image pipelines with random weights, made in memory like those of ``tiny_models``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tests.tiny_models import (
    T5_WIDTH,
    TEXT_WIDTH,
    WORDS,
    autoencoder,
    clip_tokenizer,
    plain_clip_text_encoder,
    seeded,
    t5,
)

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl_qwenimage import AutoencoderKLQwenImage
    from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
    from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformer2DModel
    from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
    from diffusers.pipelines.qwenimage.pipeline_qwenimage import QwenImagePipeline
    from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

# The schedulers' files of the published models, less what is diffusers' default anyway.
FLUX_DEV_SCHEDULE: dict[str, Any] = {
    "base_image_seq_len": 256,
    "base_shift": 0.5,
    "max_image_seq_len": 4096,
    "max_shift": 1.15,
    "shift": 3.0,
    "use_dynamic_shifting": True,
}
FLUX_SCHNELL_SCHEDULE: dict[str, Any] = {**FLUX_DEV_SCHEDULE, "shift": 1.0, "use_dynamic_shifting": False}
QWEN_IMAGE_SCHEDULE: dict[str, Any] = {
    "base_image_seq_len": 256,
    "base_shift": 0.5,
    "max_image_seq_len": 8192,
    "max_shift": 0.9,
    "shift": 1.0,
    "shift_terminal": 0.02,
    "time_shift_type": "exponential",
    "use_dynamic_shifting": True,
}

_ATTENTION: dict[str, Any] = {"attention_head_dim": 8, "num_attention_heads": 2, "axes_dims_rope": (2, 2, 4)}
_INSTRUCTION_WORDS = (  # of the template that Qwen-Image puts around a prompt: a token each, as in the real vocabulary
    "system user assistant Describe the image by detailing the color shape size texture quantity text spatial "
    "relationships of the objects and background"
)
_ROLES = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def scheduler(config: dict[str, Any]) -> Any:
    """The scheduler of a flow model."""
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**config)


def flux_transformer(*, seed: int, guidance_embeds: bool) -> FluxTransformer2DModel:
    """One block of each kind on packed 4x8x8 latents."""
    from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

    with seeded(seed):
        return FluxTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            joint_attention_dim=T5_WIDTH,
            pooled_projection_dim=TEXT_WIDTH,
            guidance_embeds=guidance_embeds,
            **_ATTENTION,
        )


def tiny_flux(*, seed: int = 0, schnell: bool = False) -> FluxPipeline:
    """A random FluxPipeline, one CLIP and one T5 encoder; 2 pixels a latent element.

    Two calls with the same arguments give the same weights.
    """
    from diffusers.pipelines.flux.pipeline_flux import FluxPipeline

    tokenizer = clip_tokenizer()
    text_encoder_2, tokenizer_2 = t5(seed=seed + 5)
    pipe = FluxPipeline(
        transformer=flux_transformer(seed=seed + 1, guidance_embeds=not schnell),
        scheduler=scheduler(FLUX_SCHNELL_SCHEDULE if schnell else FLUX_DEV_SCHEDULE),
        vae=autoencoder(seed=seed + 2),
        text_encoder=plain_clip_text_encoder(tokenizer, seed=seed + 3),
        tokenizer=tokenizer,
        text_encoder_2=text_encoder_2,
        tokenizer_2=tokenizer_2,  # type: ignore[arg-type]  # T5Tokenizer is what T5TokenizerFast has become
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def qwen_tokenizer() -> Qwen2Tokenizer:
    """A byte-level tokenizer that knows the words of the tests and of the instruction, each as one token."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import AddedToken, Qwen2Tokenizer

    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=1000,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words = [*_INSTRUCTION_WORDS.split(), *WORDS]
    trained.train_from_iterator([word for plain in words for word in (plain, f" {plain}")] * 2, trainer)
    model = json.loads(trained.to_str())["model"]
    merges: Any = [tuple(merge) for merge in model["merges"]]
    tokenizer = Qwen2Tokenizer(vocab=model["vocab"], merges=merges)
    tokenizer.add_tokens([AddedToken(role, special=True) for role in _ROLES], special_tokens=True)
    return tokenizer


def qwen_text_encoder(tokenizer: Qwen2Tokenizer, *, seed: int) -> Qwen2_5_VLForConditionalGeneration:
    """A Qwen2.5-VL with a language model of two layers; its eye is never opened."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": TEXT_WIDTH,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "bos_token_id": None,
        "eos_token_id": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]},
    }
    vision = {
        "depth": 1,
        "hidden_size": TEXT_WIDTH,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": TEXT_WIDTH,
        "fullatt_block_indexes": [0],
    }
    with seeded(seed):
        return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision))


def qwen_transformer(*, seed: int, guidance_embeds: bool = False) -> QwenImageTransformer2DModel:
    """Two blocks on packed 4x8x8 latents."""
    from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformer2DModel

    with seeded(seed):
        return QwenImageTransformer2DModel(
            in_channels=16,
            out_channels=4,
            num_layers=2,
            joint_attention_dim=TEXT_WIDTH,
            guidance_embeds=guidance_embeds,
            **_ATTENTION,
        )


def clip_autoencoder(*, seed: int) -> AutoencoderKLQwenImage:
    """A 3D autoencoder that halves the sides, with means and deviations that are not neutral."""
    from diffusers.models.autoencoders.autoencoder_kl_qwenimage import AutoencoderKLQwenImage

    with seeded(seed):
        return AutoencoderKLQwenImage(
            base_dim=4,
            z_dim=4,
            dim_mult=[1, 2],
            num_res_blocks=1,
            temperal_downsample=[False],
            latents_mean=[0.1, -0.2, 0.3, -0.4],
            latents_std=[1.3, 0.7, 2.1, 0.9],
        )


def tiny_qwen_image(*, seed: int = 0) -> QwenImagePipeline:
    """A random QwenImagePipeline, 2 pixels a latent element; two calls with the same seed give the same weights."""
    from diffusers.pipelines.qwenimage.pipeline_qwenimage import QwenImagePipeline

    tokenizer = qwen_tokenizer()
    pipe = QwenImagePipeline(
        transformer=qwen_transformer(seed=seed + 1),
        scheduler=scheduler(QWEN_IMAGE_SCHEDULE),
        vae=clip_autoencoder(seed=seed + 2),
        text_encoder=qwen_text_encoder(tokenizer, seed=seed + 3),
        tokenizer=tokenizer,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe
