"""FLUX and Qwen-Image against diffusers itself, on random pipelines of the same classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from difalign.core.protocols import Condition, TrainablePipeline
from difalign.pipelines.latents import pack, unpack
from difalign.pipelines.packed import PackedPipeline
from difalign.process.flow import FlowProcess
from tests.pipelines.packed import (
    CASES,
    EVERY_CASE,
    LATENT,
    SIZE,
    TEXT_TOKENS,
    diffusers_images,
    generators,
    make,
    walk,
)
from tests.tiny_models import PROMPTS, tiny_sd3

TIME = torch.tensor([800.0, 200.0])


@pytest.fixture(scope="module", params=CASES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def ours(name: str) -> PackedPipeline:
    """An adapter for tests that change nothing."""
    return make(name)


def noise(rows: int = 2) -> Tensor:
    return torch.randn(rows, *LATENT, generator=torch.Generator().manual_seed(0))


def test_satisfies_the_protocol(ours: PackedPipeline):
    assert isinstance(ours, TrainablePipeline)
    assert isinstance(ours.encode(["a red circle"]), Condition)
    assert (ours.modality, ours.latent_shape) == ("image", LATENT)


# --- equal to diffusers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_steps", [2, 5])
def test_grid_is_what_diffusers_walks(ours: PackedPipeline, num_steps: int):
    grid, pipe = ours.grid(num_steps), ours.diffusers_pipeline
    pipe("a red circle", num_inference_steps=num_steps, output_type="latent", **SIZE)
    assert torch.equal(grid.sigma, pipe.scheduler.sigmas)
    assert torch.equal(grid.model_time, pipe.scheduler.timesteps)
    assert torch.equal(grid.alpha, 1.0 - grid.sigma)


@pytest.mark.parametrize("prompts", [PROMPTS, ("a red circle",) * 2], ids=["several", "one"])
def test_noise_free_walk_equals_diffusers_bit_for_bit(name: str, ours: PackedPipeline, prompts: tuple[str, ...]):
    condition = ours.encode(prompts)
    latents = walk(ours, condition, num_steps=4)
    theirs = diffusers_images(name, ours, condition, num_inference_steps=4, output_type="latent")
    assert torch.equal(pack(latents), theirs)
    pixels = diffusers_images(name, ours, condition, num_inference_steps=4, output_type="pt")
    assert torch.equal(ours.decode(latents), pixels)
    assert float(pixels.std()) > 0.05  # there is something to see


def test_no_guidance_equals_diffusers_too(name: str, ours: PackedPipeline):
    plain, condition = ours.with_guidance(1.0), ours.encode(PROMPTS[:2])
    theirs = diffusers_images(name, plain, condition, num_inference_steps=3, output_type="latent")
    assert torch.equal(pack(walk(plain, condition, num_steps=3)), theirs)


def test_one_prompt_many_seeds_at_another_size_equals_diffusers_given_the_text(name: str):
    pipeline = make(name, height=24, width=16)
    told: dict[str, Any] = {"guidance_scale": pipeline.guidance_scale}
    if name == "qwen":
        told = {"true_cfg_scale": pipeline.guidance_scale, "negative_prompt": " "}
    theirs = pipeline.diffusers_pipeline(
        PROMPTS[2],
        height=24,
        width=16,
        num_images_per_prompt=3,
        num_inference_steps=3,
        generator=generators(3),
        output_type="pt",
        max_sequence_length=TEXT_TOKENS,
        **told,
    ).images
    assert theirs.shape == (3, 3, 24, 16)
    assert torch.equal(pipeline.decode(walk(pipeline, pipeline.encode([PROMPTS[2]] * 3), num_steps=3)), theirs)


def test_packing_is_diffusers_own(ours: PackedPipeline):
    x, pipe = torch.randn(2, 4, 6, 8), ours.diffusers_pipeline
    tokens = pack(x)
    assert torch.equal(tokens, pipe._pack_latents(x, 2, 4, 6, 8))
    assert tokens.is_contiguous()  # as theirs: kernels may round by layout
    assert torch.equal(unpack(tokens, (4, 6, 8)), x)
    theirs = pipe._unpack_latents(tokens, 12, 16, pipe.vae_scale_factor)
    assert torch.equal(theirs.reshape(x.shape), x)  # a clip of one frame has an axis more


@EVERY_CASE
def test_a_saved_folder_comes_back(name: str, tmp_path: Path):
    pipeline = make(name)
    pipeline.diffusers_pipeline.save_pretrained(tmp_path)
    options: dict[str, Any] = {"guidance_scale": pipeline.guidance_scale, "max_sequence_length": TEXT_TOKENS, **SIZE}
    again = CASES[name].family.from_pretrained(tmp_path, process=FlowProcess(), **options)
    with torch.no_grad():
        mine, theirs = (p.predict(noise(), TIME, p.encode(PROMPTS[:2])) for p in (pipeline, again))
    assert torch.equal(mine, theirs)
    half = CASES[name].family.from_pretrained(tmp_path, process=FlowProcess(), dtype=torch.bfloat16, **options)
    assert half.diffusers_pipeline.vae.dtype == torch.float32
    assert {parameter.dtype for parameter in half.network.parameters()} == {torch.bfloat16}
    with torch.no_grad():
        rounded = half.predict(noise(), TIME, half.encode(PROMPTS[:2]))
        assert half.decode(half.initial_latents(generators(1))).dtype == rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, mine, rtol=0.1, atol=0.1)
    assert not torch.equal(rounded, mine)
    with pytest.raises(ValueError, match=f"holds a {CASES[name].family.pipeline_class}"):
        _other(name).family.from_pretrained(tmp_path, process=FlowProcess())


# --- prompts -----------------------------------------------------------------------------------------------------


@EVERY_CASE
def test_every_text_is_encoded_once_and_alone(name: str):
    pipeline, rows = make(name), []
    encoder = pipeline.diffusers_pipeline.text_encoder
    encoder.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(args[0] if args else kwargs["input_ids"])), with_kwargs=True
    )
    condition = pipeline.encode(["a red circle", "two blue squares", "a red circle"])
    negatives = 1 if name == "qwen" else 0  # FLUX has no unconditional branch
    assert rows == [1] * (2 + negatives)
    pipeline.with_guidance(1.0).encode(["two blue squares"] * 5)
    assert len(rows) == 2 + negatives
    assert condition.index.tolist() == [0, 1, 0]
    assert not condition.embeds.requires_grad
    pipeline.clear_prompt_cache()
    pipeline.encode(["a red circle"])
    assert len(rows) == 3 + 2 * negatives
    pipeline.move_text_encoders("meta")
    assert torch.equal(pipeline.encode(["a red circle"]).embeds, pipeline.encode(["a red circle"] * 2).embeds)


# --- prediction --------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_rows_may_stand_at_different_times(ours: PackedPipeline):
    condition = ours.encode(PROMPTS[:2])
    mixed = ours.predict(noise(), TIME, condition)
    for row in range(2):
        assert torch.equal(mixed[row], ours.predict(noise(), TIME[row].expand(2), condition)[row])
    assert not torch.allclose(mixed[0], ours.predict(noise(), TIME.flip(0), condition)[0])


def test_adapters_go_to_the_published_layers(ours: PackedPipeline, name: str):
    pipeline = make(name)
    pipeline.tuning.attach_lora(rank=2, alpha=4, seed=0)
    adapted = {key.split(".lora_")[0] for key, _ in pipeline.network.named_parameters() if ".lora_" in key}
    attention = {"to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"}
    streams = ("img_mlp", "txt_mlp") if name == "qwen" else ("ff", "ff_context")
    block = {f"attn.{layer}" for layer in attention} | {f"{s}.net.{i}" for s in streams for i in ("0.proj", "2")}
    blocks = range(len(pipeline.network.transformer_blocks))  # type: ignore[arg-type]
    expected = {f"transformer_blocks.{i}.{layer}" for i in blocks for layer in block}
    if name != "qwen":
        expected |= {f"single_transformer_blocks.0.attn.to_{letter}" for letter in "qkv"}
    assert adapted == expected
    condition = pipeline.encode(PROMPTS[:2])
    assert torch.equal(pipeline.predict(noise(), TIME, condition), ours.predict(noise(), TIME, condition))
    pipeline.predict(noise(), TIME, condition).square().mean().backward()
    ups = {key.split(".lora_")[0]: p for key, p in pipeline.network.named_parameters() if "lora_B" in key}
    without = {layer for layer, parameter in ups.items() if parameter.grad is None}
    last = f"transformer_blocks.{len(blocks) - 1}."  # the text stream of Qwen-Image ends there, unread
    unread = ("attn.to_add_out", "txt_mlp.net.0.proj", "txt_mlp.net.2")
    assert without == ({last + layer for layer in unread} if name == "qwen" else set())


def test_nothing_is_trainable_until_asked(ours: PackedPipeline):
    pipe = ours.diffusers_pipeline
    modules = [pipe.vae, pipe.text_encoder, ours.network]
    assert not any(parameter.requires_grad for module in modules for parameter in module.parameters())
    assert not any(module.training for module in modules)


def test_decode_is_differentiable(ours: PackedPipeline):
    z = noise().requires_grad_()
    pixels = ours.decode(z)
    assert pixels.shape == (2, 3, 16, 16)
    assert float(torch.autograd.grad(pixels.sum(), z)[0].abs().sum()) > 0.0


# --- what is refused ---------------------------------------------------------------------------------------------


def test_refuses_what_does_not_fit(ours: PackedPipeline, name: str):
    condition, family, pipe = ours.encode(["a red circle"]), CASES[name].family, ours.diffusers_pipeline
    with pytest.raises(ValueError, match=r"\[N, 4, 8, 8\].*got \[1, 16, 16\]"):
        ours.predict(pack(noise(1)), TIME[:1], condition)
    with pytest.raises(ValueError, match=r"got \[1, 4, 4, 4\]"):
        ours.decode(torch.zeros(1, 4, 4, 4))
    with pytest.raises(ValueError, match="x has 2 rows, condition 1"):
        ours.predict(noise(), TIME, condition)
    with pytest.raises(ValueError, match="multiples of 4, got height=18, width=16"):
        make(name, pipe=pipe, height=18)
    with pytest.raises(ValueError, match=f"1 to {family.longest_text} here, got 0"):
        make(name, pipe=pipe, max_sequence_length=0)
    with pytest.raises(ValueError, match="finite number >= 0, got nan"):
        ours.with_guidance(float("nan"))
    with pytest.raises(ValueError, match="num_steps=0"):
        ours.grid(0)
    with pytest.raises(ValueError, match=f"wraps a {family.pipeline_class}, got StableDiffusion3Pipeline"):
        make(name, pipe=tiny_sd3())


@EVERY_CASE
def test_refuses_another_scheduler(name: str):
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    pipe = CASES[name].build()
    pipe.scheduler = DDIMScheduler()
    with pytest.raises(ValueError, match="needs a FlowMatchEulerDiscreteScheduler, got DDIMScheduler"):
        make(name, pipe=pipe)


def test_the_size_is_diffusers_own_unless_told(ours: PackedPipeline, name: str):
    pipeline = make(name, pipe=ours.diffusers_pipeline, height=None, width=32)
    assert pipeline.latent_shape == (4, 128, 16)


def _other(name: str) -> Any:
    return CASES["flux" if name == "qwen" else "qwen"]
