"""Builders of tiny diffusers pipelines with random weights: everything is made in memory, nothing is downloaded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
    from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import StableDiffusion3Pipeline
    from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
    from transformers import (
        CLIPModel,
        CLIPTextModel,
        CLIPTextModelWithProjection,
        CLIPTokenizer,
        T5EncoderModel,
        T5Tokenizer,
    )

WORDS = ("a", "red", "green", "blue", "circle", "square", "cross", "above", "below", "and", "two", "of", "left")
PROMPTS = ("a red circle", "two blue squares", "a green cross above a red square", "a blue circle and a red cross")
CLIP_LENGTH = 12  # tokens, with begin and end
_BEGIN, _END = 0, 1
TEXT_WIDTH = 16
T5_WIDTH = 40  # wider than the two CLIP encoders side by side, as in the real model


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Random weights from ``seed``, leaving the global generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def clip_tokenizer(words: tuple[str, ...] = WORDS) -> CLIPTokenizer:
    """A CLIP tokenizer over the whole byte alphabet plus the merges that spell ``words``."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    special = ["<|startoftext|>", "<|endoftext|>"]  # _BEGIN and _END
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*special, *alphabet, *(f"{c}</w>" for c in alphabet)])}
    trained = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    trained.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        end_of_word_suffix="</w>",
        special_tokens=special,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    trained.train_from_iterator([" ".join(words)] * 4, trainer)
    merges: Any = [tuple(merge) for merge in json.loads(trained.to_str())["model"]["merges"]]
    for left, right in merges:
        vocabulary.setdefault(left + right, len(vocabulary))
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=CLIP_LENGTH)


def clip_text_encoder(tokenizer: CLIPTokenizer, *, seed: int) -> CLIPTextModelWithProjection:
    """A CLIP text encoder of width 16 and two layers, with a projection."""
    from transformers import CLIPTextModelWithProjection

    with seeded(seed):
        return CLIPTextModelWithProjection(_clip_config(tokenizer))


def plain_clip_text_encoder(tokenizer: CLIPTokenizer, *, seed: int) -> CLIPTextModel:
    """The same without a projection."""
    from transformers import CLIPTextModel

    with seeded(seed):
        return CLIPTextModel(_clip_config(tokenizer))


def _clip_config(tokenizer: CLIPTokenizer) -> Any:
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=32,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=CLIP_LENGTH,
        bos_token_id=_BEGIN,
        eos_token_id=_END,
        pad_token_id=_END,
    )


def t5(*, seed: int) -> tuple[T5EncoderModel, T5Tokenizer]:
    """A T5 encoder of one layer and a unigram tokenizer over the same words."""
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((f"▁{word}", -2.0) for word in WORDS)]
    pieces += [(letter, -6.0) for letter in "▁abcdefghijklmnopqrstuvwxyz"]
    tokenizer = T5Tokenizer(vocab=pieces, extra_ids=0)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=T5_WIDTH, d_kv=8, d_ff=32, num_layers=1, num_heads=2, dropout_rate=0.0
    )
    with seeded(seed):
        return T5EncoderModel(config), tokenizer


def transformer(*, seed: int) -> SD3Transformer2DModel:
    """A two-block MMDiT on 4x8x8 latents with query-key normalisation, as SD3.5 has it."""
    from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel

    with seeded(seed):
        return SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=T5_WIDTH,
            caption_projection_dim=16,
            pooled_projection_dim=2 * TEXT_WIDTH,
            pos_embed_max_size=16,
            qk_norm="rms_norm",
        )


def autoencoder(*, seed: int) -> AutoencoderKL:
    """An autoencoder that halves the sides, with a scaling and a shift that are not neutral."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    config: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D", "DownEncoderBlock2D"),
        "up_block_types": ("UpDecoderBlock2D", "UpDecoderBlock2D"),
        "block_out_channels": (4, 8),
        "layers_per_block": 1,
        "latent_channels": 4,
        "norm_num_groups": 2,
        "sample_size": 16,
        "mid_block_add_attention": False,
        "scaling_factor": 1.3,
        "shift_factor": 0.1,
    }
    with seeded(seed):
        return AutoencoderKL(**config)


def tiny_sd3(
    *, seed: int = 0, with_t5: bool = False, shift: float = 3.0, dynamic_shifting: bool = False
) -> StableDiffusion3Pipeline:
    """A random StableDiffusion3Pipeline: 16x16 pixels, two CLIP encoders, a third T5 encoder on request.

    Two calls with the same arguments give the same weights.
    """
    from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import StableDiffusion3Pipeline
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

    tokenizer, tokenizer_2 = clip_tokenizer(), clip_tokenizer()
    text_encoder_3, tokenizer_3 = t5(seed=seed + 5) if with_t5 else (None, None)
    pipe = StableDiffusion3Pipeline(
        transformer=transformer(seed=seed + 1),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=shift, use_dynamic_shifting=dynamic_shifting),
        vae=autoencoder(seed=seed + 2),
        text_encoder=clip_text_encoder(tokenizer, seed=seed + 3),
        tokenizer=tokenizer,
        text_encoder_2=clip_text_encoder(tokenizer_2, seed=seed + 4),
        tokenizer_2=tokenizer_2,
        text_encoder_3=text_encoder_3,  # type: ignore[arg-type]
        tokenizer_3=tokenizer_3,  # type: ignore[arg-type]
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


# --- diffusion -----------------------------------------------------------------------------------------------------

# What Stable Diffusion 1.x comes with; diffusers' own DDIM defaults are those of another model.
SD_SCHEDULE: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}


def ddim(**options: Any) -> Any:
    """A DDIMScheduler with Stable Diffusion's settings, overridden by ``options``."""
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    return DDIMScheduler(**{**SD_SCHEDULE, "clip_sample": False, "set_alpha_to_one": False, **options})


def unet(*, seed: int, **options: Any) -> UNet2DConditionModel:
    """A UNet of two levels on 4x8x8 latents, with cross-attention on the inner one."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    config: dict[str, Any] = {
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": TEXT_WIDTH,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
    }
    with seeded(seed):
        return UNet2DConditionModel(**{**config, **options})


def tiny_sd(*, seed: int = 0, scheduler: Any = None) -> StableDiffusionPipeline:
    """A random StableDiffusionPipeline: 16x16 pixels, one CLIP encoder, PNDM as the published 1.5 has it.

    Two calls with the same arguments give the same weights.
    """
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
    from diffusers.schedulers.scheduling_pndm import PNDMScheduler

    tokenizer = clip_tokenizer()
    pipe = StableDiffusionPipeline(
        vae=autoencoder(seed=seed + 2),
        text_encoder=plain_clip_text_encoder(tokenizer, seed=seed + 3),
        tokenizer=tokenizer,
        unet=unet(seed=seed + 1),
        scheduler=PNDMScheduler(**SD_SCHEDULE, skip_prk_steps=True) if scheduler is None else scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tiny_sdxl(*, seed: int = 0, zero_negative: bool = True) -> StableDiffusionXLPipeline:
    """A random StableDiffusionXLPipeline: 16x16 pixels, two CLIP encoders, Euler as the published base has it."""
    from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
    from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler

    tokenizer, tokenizer_2 = clip_tokenizer(), clip_tokenizer()
    network = unet(
        seed=seed + 1,
        cross_attention_dim=2 * TEXT_WIDTH,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + TEXT_WIDTH,
        use_linear_projection=True,
    )
    pipe = StableDiffusionXLPipeline(
        vae=autoencoder(seed=seed + 2),
        text_encoder=plain_clip_text_encoder(tokenizer, seed=seed + 3),
        text_encoder_2=clip_text_encoder(tokenizer_2, seed=seed + 4),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        unet=network,
        scheduler=EulerDiscreteScheduler(**SD_SCHEDULE, timestep_spacing="leading"),
        force_zeros_for_empty_prompt=zero_negative,
        add_watermarker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def clip_model(tokenizer: CLIPTokenizer, *, seed: int, side: int = 24) -> CLIPModel:
    """A whole CLIP model that reads pictures of ``side`` pixels in patches of 8."""
    from transformers import CLIPConfig, CLIPModel

    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": side,
        "patch_size": 8,
    }
    text = _clip_config(tokenizer).to_dict()
    with seeded(seed):
        return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)).eval()
