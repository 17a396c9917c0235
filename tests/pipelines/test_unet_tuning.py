"""Training of the UNet adapters: what is saved comes back here and in plain diffusers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from difalign.pipelines.unet import LORA_TARGETS, UNetPipeline
from difalign.process.diffusion import DiffusionProcess
from tests.pipelines.unets import EVERY_FAMILY, FAMILIES, diffusers_images, generators, make, walk
from tests.tiny_models import PROMPTS


def perturbed(pipeline: UNetPipeline) -> UNetPipeline:
    """The pipeline with adapters that do something."""
    pipeline.tuning.attach_lora(rank=4, alpha=10, seed=3)  # a reader that loses the scale gives other images
    source = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in pipeline.tuning.trainable_parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=source))
    return pipeline


@EVERY_FAMILY
def test_adapters_come_back_in_plain_diffusers_and_here(tmp_path: Path, name: str):
    pipeline = make(name, guidance_scale=4.0)
    condition = pipeline.encode(PROMPTS[:2])
    base = walk(pipeline, condition, num_steps=3)
    pipeline.tuning.attach_lora(rank=4, alpha=10, seed=3)
    assert torch.equal(walk(pipeline, condition, num_steps=3), base), "attaching changes nothing"
    tuned = walk(perturbed(make(name, guidance_scale=4.0)), condition, num_steps=3)
    assert not torch.allclose(tuned, base)
    file = perturbed(make(name)).tuning.save_lora(tmp_path)
    assert file == tmp_path / "pytorch_lora_weights.safetensors"

    plain = make(name, guidance_scale=4.0)
    plain.diffusers_pipeline.load_lora_weights(str(tmp_path))
    theirs = diffusers_images(plain, condition, num_inference_steps=3, guidance_scale=4.0, output_type="latent")
    torch.testing.assert_close(theirs, tuned, rtol=1e-4, atol=1e-4)

    again = make(name, guidance_scale=4.0)
    again.tuning.load_lora(tmp_path)
    assert torch.equal(walk(again, condition, num_steps=3), tuned)
    with again.tuning.disable_adapters():
        assert torch.equal(walk(again, condition, num_steps=3), base)
    with again.tuning.reference():
        assert torch.equal(walk(again, condition, num_steps=3), base)


@EVERY_FAMILY
def test_default_targets_are_every_projection_of_both_attentions(name: str):
    pipeline = make(name)
    pipeline.tuning.attach_lora(rank=2, alpha=2, seed=0)
    adapted = {n.split(".lora_A")[0] for n, _ in pipeline.network.named_parameters() if ".lora_A." in n}
    attention = {n.removesuffix(".base_layer") for n, _ in pipeline.network.named_modules()}
    assert adapted == {n for n in attention if n.endswith(LORA_TARGETS)}
    assert all(p.dtype == torch.float32 for p in pipeline.tuning.trainable_parameters())


@EVERY_FAMILY
def test_the_whole_network_trains_saves_and_loads(tmp_path: Path, name: str):
    pipeline = make(name, guidance_scale=1.0)
    condition = pipeline.encode(PROMPTS[:1])
    base = walk(pipeline, condition, num_steps=2)
    pipeline.tuning.train_all()
    assert len(pipeline.tuning.trainable_parameters()) == len(list(pipeline.network.parameters()))
    with torch.no_grad():
        for parameter in pipeline.tuning.trainable_parameters():
            parameter.mul_(1.05)
    tuned = walk(pipeline, condition, num_steps=2)
    with pipeline.tuning.reference():
        assert torch.equal(walk(pipeline, condition, num_steps=2), base)
    pipeline.tuning.save_network(tmp_path / "network")
    other = make(name, guidance_scale=1.0)
    other.tuning.load_network(tmp_path / "network")
    assert torch.equal(walk(other, condition, num_steps=2), tuned)
    assert not torch.allclose(tuned, base)


@EVERY_FAMILY
@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_pipeline_loads_with_float32_seams(tmp_path: Path, name: str, dtype: torch.dtype):
    family, build = FAMILIES[name]
    build().save_pretrained(tmp_path)
    loaded = family.from_pretrained(tmp_path, process=DiffusionProcess(), dtype=dtype, local_files_only=True)
    assert {parameter.dtype for parameter in loaded.network.parameters()} == {dtype}
    assert loaded.diffusers_pipeline.vae.dtype == torch.float32
    assert not any(parameter.requires_grad for parameter in loaded.network.parameters())
    assert loaded.guidance_scale == family.guidance_scale
    x = loaded.initial_latents(generators(2))
    prediction = loaded.predict(x, torch.tensor([700, 20]), loaded.encode(PROMPTS[:2]))
    assert x.dtype == prediction.dtype == loaded.decode(x).dtype == torch.float32
    reference = make(name)
    expected = reference.predict(x, torch.tensor([700, 20]), reference.encode(PROMPTS[:2]))
    if dtype == torch.float32:
        assert torch.equal(prediction, expected)
    else:
        assert not torch.equal(prediction, expected)
        torch.testing.assert_close(prediction, expected, rtol=0.2, atol=0.2)
