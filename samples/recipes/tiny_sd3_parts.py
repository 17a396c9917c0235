"""The parts of tiny-sd3: its transformer, its text conditioning, a plain Euler sampler, and how it is saved."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from diffusers.models.attention_processor import Attention
from scene_training import CHANNELS, DOWNSCALE, guided, settle_configs
from tiny_text import (
    NULL_WIDTH,
    build_null_encoder,
    build_null_tokenizer,
    build_text_encoder,
    build_tokenizer,
    token_ids,
)
from torch import Tensor, nn

from difalign.embedded.scenes import SIZE

LATENT = SIZE // DOWNSCALE  # a side
PATCH = 6  # latent pixels; one patch is one cell of the 3 x 3 grid
# A patch holds 72 numbers and the network is 96 wide. With more numbers than width (4 channels: 144) the noise of a
# patch does not fit through: specks stay in the background and no room is left for the position of a token.


ZERO_START = re.compile(r"norm1(_context)?\.linear$|^norm_out\.linear$|^proj_out$")


def build_transformer() -> SD3Transformer2DModel:
    """An untrained SD3 transformer: 9 image tokens, 6 blocks, 96 wide; modulations and output start at zero."""
    transformer = SD3Transformer2DModel(
        sample_size=LATENT,
        patch_size=PATCH,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_layers=6,
        attention_head_dim=32,
        num_attention_heads=3,
        joint_attention_dim=NULL_WIDTH,
        caption_projection_dim=96,
        pooled_projection_dim=128,
        pos_embed_max_size=LATENT // PATCH,
        qk_norm="rms_norm",
    )
    for name, module in transformer.named_modules():
        if isinstance(module, nn.Linear) and (ZERO_START.search(name)):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    return transformer


def build_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """The scheduler that ships with the pipeline."""
    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0)


class WeightedNullToken:
    """Joint attention in which the last text token counts as ``weight`` copies of itself.

    Copies of one token get equal outputs in every block, so adding log(weight) to the logits of its key is exactly
    what attention over that many copies does. This trains the model for any ``max_sequence_length`` (the zero tokens
    that a pipeline without a real T5 appends, 256 by default) at the price of a single token.
    """

    def __init__(self) -> None:
        self.weight: Tensor | None = None  # [N]; None means 1

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,  # noqa: ARG002  # diffusers passes it by name, SD3 never sets it
    ) -> tuple[Tensor, Tensor]:
        """Image and text tokens after joint attention."""

        def heads(x: Tensor) -> Tensor:
            return x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)

        image = [heads(project(hidden_states)) for project in (attn.to_q, attn.to_k, attn.to_v)]
        text = [
            heads(project(encoder_hidden_states)) for project in (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
        ]
        query = torch.cat([attn.norm_q(image[0]), attn.norm_added_q(text[0])], dim=2)
        key = torch.cat([attn.norm_k(image[1]), attn.norm_added_k(text[1])], dim=2)
        value = torch.cat([image[2], text[2]], dim=2)
        bias = None
        if self.weight is not None:
            bias = torch.zeros(len(query), 1, 1, key.shape[2], device=key.device)
            bias[:, 0, 0, -1] = self.weight.log()
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        mixed = mixed.transpose(1, 2).flatten(2)
        first, second = mixed.split([hidden_states.shape[1], encoder_hidden_states.shape[1]], dim=1)
        return attn.to_out[0](first), second if attn.context_pre_only else attn.to_add_out(second)


class TinySD3(nn.Module):
    """What is trained: the transformer and both text encoders, called as the diffusers pipeline calls them."""

    def __init__(self) -> None:
        super().__init__()
        self.tokenizer = build_tokenizer()
        self.text_encoder = build_text_encoder(self.tokenizer)
        self.text_encoder_2 = build_text_encoder(self.tokenizer)
        self.transformer = build_transformer()
        self.null_token = WeightedNullToken()
        for block in self.transformer.transformer_blocks:
            block.attn.set_processor(self.null_token)

    def encode(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Token ids to (prompt embeddings [N, tokens + 1, 128], pooled [N, 128]); the last token is zero."""
        outputs = [encoder(ids, output_hidden_states=True) for encoder in (self.text_encoder, self.text_encoder_2)]
        hidden = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
        hidden = nn.functional.pad(hidden, (0, 0, 0, 1))
        return hidden, torch.cat([output.text_embeds for output in outputs], dim=-1)

    def forward(self, x: Tensor, sigma: Tensor, ids: Tensor) -> Tensor:
        """The velocity noise - x0, [N, CHANNELS, LATENT, LATENT]; sigma is [N]."""
        hidden, pooled = self.encode(ids)
        return self.transformer(
            x, encoder_hidden_states=hidden, pooled_projections=pooled, timestep=sigma * 1000
        ).sample


@torch.no_grad()
def sample_latents(
    model: TinySD3, ids: Tensor, *, steps: int, guidance: float, generator: torch.Generator, batch: int = 250
) -> Tensor:
    """Euler ODE from noise, [N, CHANNELS, LATENT, LATENT]; guidance 1 means the conditional branch alone."""
    device = ids.device
    empty = token_ids(model.tokenizer, [""]).to(device)
    scheduler = build_scheduler()
    scheduler.set_timesteps(steps)
    sigmas = scheduler.sigmas
    noise = torch.randn(len(ids), CHANNELS, LATENT, LATENT, generator=generator).to(device)
    done = []
    for start, chunk in zip(noise.split(batch), ids.split(batch), strict=True):
        x = start
        for i in range(steps):
            velocity = guided(model, x, sigmas[i].to(device), chunk, empty=empty, guidance=guidance)
            x = x + (sigmas[i + 1] - sigmas[i]).item() * velocity
        done.append(x)
    return torch.cat(done)


def save_pipeline(model: TinySD3, vae: AutoencoderKL, folder: Path) -> None:
    """Write a StableDiffusion3Pipeline folder in fp16 safetensors that diffusers alone can load."""
    pipeline = StableDiffusion3Pipeline(
        transformer=model.transformer,
        scheduler=build_scheduler(),
        vae=vae,
        text_encoder=model.text_encoder,
        tokenizer=model.tokenizer,
        text_encoder_2=model.text_encoder_2,
        tokenizer_2=model.tokenizer,
        text_encoder_3=build_null_encoder(),
        tokenizer_3=build_null_tokenizer(),
    )
    pipeline.to(dtype=torch.float16)
    pipeline.save_pretrained(folder)
    pipeline.to(dtype=torch.float32)
    settle_configs(folder)
