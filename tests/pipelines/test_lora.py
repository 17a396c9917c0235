"""Adapters on a random SD3: exact at the start, exact when off, exact through a file, readable by diffusers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from difalign.pipelines import lora
from difalign.pipelines.sd3 import SD3Pipeline
from difalign.process.flow import FlowProcess
from tests.tiny_models import PROMPTS, tiny_sd3

RANK, ALPHA = 4, 10  # a scale of 2.5: a reader that loses alpha gives other images


@pytest.fixture
def pipeline() -> SD3Pipeline:
    return fresh()


def fresh() -> SD3Pipeline:
    return SD3Pipeline(tiny_sd3(), process=FlowProcess(), guidance_scale=4.5, max_sequence_length=0)


def trained(seed: int = 3) -> SD3Pipeline:
    """A pipeline with adapters that do something."""
    pipeline = fresh()
    pipeline.tuning.attach_lora(rank=RANK, alpha=ALPHA, seed=seed)
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in pipeline.tuning.trainable_parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=source))
    return pipeline


def predict(pipeline: SD3Pipeline) -> Tensor:
    condition = pipeline.encode(PROMPTS[:2])
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    return pipeline.predict(x, torch.tensor([800.0, 200.0]), condition)


@torch.no_grad()
def images(pipeline: SD3Pipeline) -> Tensor:
    return diffusers_images(pipeline.diffusers_pipeline)


def diffusers_images(pipe) -> Tensor:
    sources = [torch.Generator().manual_seed(i) for i in range(2)]
    return pipe(
        list(PROMPTS[:2]),
        num_inference_steps=3,
        guidance_scale=4.5,
        generator=sources,
        output_type="pt",
        max_sequence_length=0,
    ).images


def adapters(pipeline: SD3Pipeline) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in pipeline.network.named_parameters() if "lora_" in name}


# --- attaching ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_attaching_changes_nothing_bit_for_bit(pipeline: SD3Pipeline):
    before = predict(pipeline)
    pipeline.tuning.attach_lora(rank=RANK, alpha=ALPHA, seed=0)
    assert torch.equal(predict(pipeline), before)


def test_the_start_is_gaussian_and_comes_from_the_seed_alone():
    states = []
    for global_seed, seed in ((1, 5), (2, 5), (1, 6)):
        pipeline = fresh()
        torch.manual_seed(global_seed)
        before = torch.random.get_rng_state()
        pipeline.tuning.attach_lora(rank=RANK, alpha=ALPHA, seed=seed)
        assert torch.equal(torch.random.get_rng_state(), before)
        states.append(adapters(pipeline))
    same, again, other = states
    assert all(torch.equal(same[name], again[name]) for name in same)
    downs = torch.cat([value.flatten() for name, value in same.items() if "lora_A" in name])
    assert not torch.equal(downs, torch.cat([value.flatten() for name, value in other.items() if "lora_A" in name]))
    assert abs(float(downs.std()) * RANK - 1.0) < 4.0 / (2.0 * downs.numel()) ** 0.5  # std 1/rank, 4 standard errors
    assert all(not value.any() for name, value in same.items() if "lora_B" in name)


def test_a_layer_starts_the_same_whatever_else_is_adapted():
    alone, among = fresh(), fresh()
    alone.tuning.attach_lora(rank=RANK, alpha=ALPHA, targets=["attn.to_q"], seed=0)
    among.tuning.attach_lora(rank=RANK, alpha=ALPHA, seed=0)
    few, many = adapters(alone), adapters(among)
    assert len(few) < len(many)
    assert all(torch.equal(value, many[name]) for name, value in few.items())


def test_default_targets_are_every_projection_of_the_joint_attention(pipeline: SD3Pipeline):
    pipeline.tuning.attach_lora(rank=RANK, alpha=ALPHA, seed=0)
    adapted = {name.split(".lora_")[0] for name in adapters(pipeline)}
    expected = {
        name.removesuffix(".base_layer")
        for name, module in pipeline.network.named_modules()
        if isinstance(module, nn.Linear) and ".attn." in name and "lora_" not in name
    }
    assert adapted == expected
    assert len(adapted) == 15  # 8 in the first block, 7 in the last, whose text stream ends


def test_gradient_reaches_the_adapters_only(pipeline: SD3Pipeline):
    pipeline.tuning.attach_lora(rank=RANK, alpha=ALPHA, seed=0)
    predict(pipeline).square().mean().backward()
    for name, parameter in pipeline.network.named_parameters():
        assert (parameter.grad is not None) == ("lora_" in name), name
    idle = [
        name.split(".lora_")[0]
        for name, p in pipeline.network.named_parameters()
        if "lora_B" in name and not (p.grad is not None and p.grad.any())
    ]
    assert idle == ["transformer_blocks.1.attn.add_q_proj"]  # the last block drops what its text tokens read
    mine = pipeline.tuning.trainable_parameters()
    assert len(mine) == 30
    assert all(parameter.dtype == torch.float32 for parameter in mine)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_adapters_stay_float32_on_a_half_precision_network(dtype: torch.dtype):
    half = SD3Pipeline(tiny_sd3().to(dtype), process=FlowProcess(), max_sequence_length=0)
    half.tuning.attach_lora(rank=RANK, alpha=ALPHA, seed=0)
    full = fresh()
    full.tuning.attach_lora(rank=RANK, alpha=ALPHA, seed=0)
    assert all(torch.equal(a, b) for a, b in zip(adapters(half).values(), adapters(full).values(), strict=True))
    assert predict(half).dtype == torch.float32
    predict(half).square().mean().backward()
    assert all(parameter.grad is not None for parameter in half.tuning.trainable_parameters())


# --- the reference policy ----------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("context", ["disable_adapters", "reference"])
def test_switched_off_adapters_leave_the_base_bit_for_bit(context: str):
    base, pipeline = predict(fresh()), trained()
    tuned = predict(pipeline)
    assert not torch.allclose(tuned, base)
    sibling = pipeline.with_guidance(4.5)
    with getattr(pipeline.tuning, context)():
        assert torch.equal(predict(pipeline), base)
        assert torch.equal(predict(sibling), base)
        with getattr(pipeline.tuning, context)():
            pass
        assert torch.equal(predict(pipeline), base), "leaving the inner context must not switch the adapters on"
    assert torch.equal(predict(pipeline), tuned)


def test_the_switch_survives_an_exception_and_keeps_what_is_trainable():
    pipeline = trained()
    frozen = pipeline.tuning.trainable_parameters()[0].requires_grad_(False)
    kept = [id(parameter) for parameter in pipeline.tuning.trainable_parameters()]
    tuned = predict(pipeline)
    with pytest.raises(RuntimeError, match="inside"), pipeline.tuning.disable_adapters():
        raise RuntimeError("inside")
    assert torch.equal(predict(pipeline), tuned)
    assert [id(parameter) for parameter in pipeline.tuning.trainable_parameters()] == kept
    assert not frozen.requires_grad


def test_a_reference_between_forward_and_backward_leaves_the_gradient_alone():
    gradients = []
    for with_reference in (False, True):
        pipeline = trained()
        loss = predict(pipeline).square().mean()
        if with_reference:
            with torch.no_grad(), pipeline.tuning.reference():
                predict(pipeline)
        loss.backward()
        gradients.append([parameter.grad for parameter in pipeline.tuning.trainable_parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


# --- files -------------------------------------------------------------------------------------------------------


def test_plain_diffusers_gives_the_same_images_from_the_file(tmp_path: Path):
    pipeline = trained()
    path = pipeline.tuning.save_lora(tmp_path)
    assert path == tmp_path / "pytorch_lora_weights.safetensors"
    plain = tiny_sd3()
    base = diffusers_images(plain)
    plain.load_lora_weights(str(tmp_path))
    assert torch.equal(diffusers_images(plain), images(pipeline))
    assert not torch.allclose(base, images(pipeline))


def test_the_header_carries_alpha(tmp_path: Path):
    path = trained().tuning.save_lora(tmp_path)
    with safe_open(str(path), framework="pt") as file:
        stored = json.loads(file.metadata()["lora_adapter_metadata"])
    assert (stored["transformer.r"], stored["transformer.lora_alpha"]) == (RANK, ALPHA)


def test_loading_is_exact_and_trainable(tmp_path: Path):
    pipeline = trained()
    pipeline.tuning.save_lora(tmp_path)
    into_base, over_others = fresh(), trained(seed=9)
    for other in (into_base, over_others):
        other.tuning.load_lora(tmp_path)
        assert torch.equal(predict(other), predict(pipeline))
        assert len(other.tuning.trainable_parameters()) == 30
        assert all(
            torch.equal(a, b) for a, b in zip(adapters(other).values(), adapters(pipeline).values(), strict=True)
        )


def test_loading_is_exact_on_a_half_precision_network(tmp_path: Path):
    pipeline = trained()
    pipeline.tuning.save_lora(tmp_path)
    half = SD3Pipeline(tiny_sd3().to(torch.bfloat16), process=FlowProcess(), max_sequence_length=0)
    before = torch.random.get_rng_state()
    half.tuning.load_lora(tmp_path)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(adapters(half).values(), adapters(pipeline).values(), strict=True))


def test_a_file_without_configuration_is_read_as_diffusers_reads_it(tmp_path: Path):
    path = trained().tuning.save_lora(tmp_path)
    save_file(load_file(path), path)  # the header is gone, alpha with it
    plain, ours = tiny_sd3(), fresh()
    plain.load_lora_weights(str(tmp_path))
    ours.tuning.load_lora(tmp_path)
    assert torch.equal(images(ours), diffusers_images(plain))
    assert not torch.allclose(images(ours), images(trained()))


def test_an_adapter_written_by_diffusers_is_read(tmp_path: Path):
    from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import StableDiffusion3Pipeline
    from peft import get_peft_model_state_dict

    pipeline = trained()
    StableDiffusion3Pipeline.save_lora_weights(
        tmp_path,
        transformer_lora_layers=get_peft_model_state_dict(pipeline.network),
        transformer_lora_adapter_metadata=pipeline.network.peft_config["default"].to_dict(),  # type: ignore[index]
    )
    other = fresh()
    other.tuning.load_lora(tmp_path)
    assert torch.equal(predict(other), predict(pipeline))


# --- refusals ----------------------------------------------------------------------------------------------------


def test_refuses_targets_that_match_nothing(pipeline: SD3Pipeline):
    with pytest.raises(ValueError, match=r"\['attn.to_qq'\] match no linear or .*; known: .*attn.to_out.0, attn.to_q,"):
        pipeline.tuning.attach_lora(rank=RANK, alpha=ALPHA, targets=["attn.to_k", "attn.to_qq"], seed=0)
    with pytest.raises(ValueError, match="known: "):
        pipeline.tuning.attach_lora(rank=RANK, alpha=ALPHA, targets=[], seed=0)
    assert not lora.is_attached(pipeline.network)


def test_refuses_wrong_numbers_and_a_second_attachment(pipeline: SD3Pipeline):
    with pytest.raises(ValueError, match="rank=0, alpha=8"):
        pipeline.tuning.attach_lora(rank=0, alpha=8, seed=0)
    pipeline.tuning.attach_lora(rank=RANK, alpha=ALPHA, seed=0)
    with pytest.raises(ValueError, match="already attached"):
        pipeline.tuning.attach_lora(rank=RANK, alpha=ALPHA, seed=0)


def test_refuses_folders_that_do_not_serve(tmp_path: Path, pipeline: SD3Pipeline):
    with pytest.raises(ValueError, match=r"no pytorch_lora_weights\.safetensors in"):
        pipeline.tuning.load_lora(tmp_path)
    with pytest.raises(ValueError, match="no LoRA adapters to save"):
        pipeline.tuning.save_lora(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file"):
        trained().tuning.save_lora(tmp_path / "file")
    assert not lora.is_attached(pipeline.network)


def test_refuses_weights_of_another_geometry(tmp_path: Path, pipeline: SD3Pipeline):
    path = trained().tuning.save_lora(tmp_path)
    pipeline.tuning.attach_lora(rank=RANK, alpha=RANK, seed=0)
    with pytest.raises(ValueError, match=r"'lora_alpha': 10.*'lora_alpha': 4"):
        pipeline.tuning.load_lora(tmp_path)
    weights = load_file(path)
    save_file({name.replace("transformer.", "unet."): value for name, value in weights.items()}, path)
    with pytest.raises(ValueError, match="no LoRA weights for 'transformer'"):
        fresh().tuning.load_lora(tmp_path)


def test_refuses_a_damaged_file(tmp_path: Path, pipeline: SD3Pipeline):
    file = trained().tuning.save_lora(tmp_path)
    content = file.read_bytes()
    for damaged in (content[:-10], content[:5], b"", b"no safetensors at all"):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"weights\.safetensors is damaged .*copy it again"):
            pipeline.tuning.load_lora(tmp_path)


def test_refuses_weights_of_another_network_and_stays_as_it_was(tmp_path: Path, pipeline: SD3Pipeline):
    path = trained().tuning.save_lora(tmp_path)
    with safe_open(str(path), framework="pt") as file:
        header = file.metadata()
    weights = {name: torch.cat([v, v], dim=1) if "lora_A" in name else v for name, v in load_file(path).items()}
    save_file(weights, path, metadata=header)
    before = predict(pipeline)
    with pytest.raises(ValueError, match="does not fit this network: 15 tensors differ"):
        pipeline.tuning.load_lora(tmp_path)
    assert torch.equal(predict(pipeline), before)
    assert not lora.is_attached(pipeline.network)
