"""The SD3 adapter against diffusers itself, on a random pipeline and on the shipped one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

from difalign.core.protocols import Condition, Pipeline
from difalign.pipelines.sd3 import SD3Pipeline
from difalign.pipelines.text_condition import TextCondition
from difalign.process.flow import FlowProcess
from tests.tiny_models import PROMPTS, tiny_sd3

SHIPPED = Path(__file__).parents[2] / "pipelines" / "tiny-sd3"
T5_TOKENS = 6


@pytest.fixture(scope="module")
def pipe():
    """A random diffusers pipeline with two CLIP encoders; tests that change it make their own."""
    return tiny_sd3()


@pytest.fixture(scope="module")
def ours(pipe) -> SD3Pipeline:
    return wrap(pipe)


def wrap(pipe, *, guidance_scale: float = 4.5, length: int = 0, **sizes: int) -> SD3Pipeline:
    return SD3Pipeline(pipe, process=FlowProcess(), guidance_scale=guidance_scale, max_sequence_length=length, **sizes)


def generators(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(100 + i) for i in range(count)]


@torch.no_grad()
def euler(pipeline: SD3Pipeline, condition: Condition, *, num_steps: int) -> Tensor:
    """The noise-free walk, from the adapter's primitives alone."""
    grid, x = pipeline.grid(num_steps), pipeline.initial_latents(generators(len(condition)))
    for i in range(num_steps):
        v = pipeline.predict(x, grid.model_time[i].expand(x.shape[0]), condition)
        x = x + v * (grid.sigma[i + 1] - grid.sigma[i])
    return x


def test_satisfies_the_protocol(ours: SD3Pipeline):
    assert isinstance(ours, Pipeline)
    assert isinstance(ours.encode(["a red circle"]), Condition)
    assert ours.modality == "image"


# --- equal to diffusers ------------------------------------------------------------------------------------------


def diffusers_images(
    pipe, condition: TextCondition, *, num_steps: int, guidance_scale: float = 4.5, output_type: str = "latent"
) -> Tensor:
    """What ``pipe(...)`` makes of the same embeddings: given texts, it would encode them as one batch."""
    embeds, pooled = condition.conditional()
    return pipe(
        prompt_embeds=embeds,
        pooled_prompt_embeds=pooled,
        negative_prompt_embeds=condition.negative[0].expand_as(embeds),
        negative_pooled_prompt_embeds=condition.negative[1].expand_as(pooled),
        num_inference_steps=num_steps,
        guidance_scale=guidance_scale,
        generator=generators(len(condition)),
        output_type=output_type,
    ).images


@pytest.mark.parametrize("num_steps", [1, 4, 7])
@pytest.mark.parametrize("guidance_scale", [1.0, 4.5])
def test_noise_free_walk_equals_diffusers_bit_for_bit(pipe, guidance_scale: float, num_steps: int):
    pipeline = wrap(pipe, guidance_scale=guidance_scale)
    condition = pipeline.encode(PROMPTS)
    latents = euler(pipeline, condition, num_steps=num_steps)
    for output_type, mine in (("latent", latents), ("pt", pipeline.decode(latents))):
        assert torch.equal(
            mine,
            diffusers_images(
                pipe, condition, num_steps=num_steps, guidance_scale=guidance_scale, output_type=output_type
            ),
        )


def test_given_the_texts_diffusers_differs_by_rounding_at_most(pipe, ours: SD3Pipeline):
    """The only difference left is that it encodes the texts together."""
    theirs = pipe(
        list(PROMPTS),
        num_inference_steps=4,
        guidance_scale=4.5,
        generator=generators(4),
        output_type="latent",
        max_sequence_length=0,
    ).images
    torch.testing.assert_close(euler(ours, ours.encode(PROMPTS), num_steps=4), theirs, rtol=1e-4, atol=1e-5)


def test_noise_free_walk_through_the_process_equals_diffusers(pipe, ours: SD3Pipeline):
    condition = ours.encode(PROMPTS[:2])
    grid, x = ours.grid(4), ours.initial_latents(generators(2))
    with torch.no_grad():
        for i in range(4):
            v = ours.predict(x, grid.model_time[i].expand(2), condition)
            x = ours.process.transition(x, v, grid, i, 0.0).mean
    assert torch.equal(x, diffusers_images(pipe, condition, num_steps=4))


@pytest.mark.parametrize("with_t5", [False, True])
def test_one_prompt_many_seeds_equals_diffusers(with_t5: bool):
    """With a third encoder, and without one but with its zero tokens; dynamic shift and another resolution on top."""
    pipe = tiny_sd3(with_t5=with_t5, dynamic_shifting=True)
    pipeline = wrap(pipe, length=T5_TOKENS, height=24, width=16)
    latents = euler(pipeline, pipeline.encode([PROMPTS[2]] * 3), num_steps=3)
    theirs = pipe(
        PROMPTS[2],
        height=24,
        width=16,
        num_images_per_prompt=3,
        num_inference_steps=3,
        guidance_scale=4.5,
        generator=generators(3),
        output_type="pt",
        max_sequence_length=T5_TOKENS,
    ).images
    assert theirs.shape == (3, 3, 24, 16)
    assert torch.equal(pipeline.decode(latents), theirs)


def test_initial_latents_depend_on_their_own_generator_only(ours: SD3Pipeline):
    together = ours.initial_latents(generators(3))
    assert together.shape == (3, 4, 8, 8)
    assert torch.equal(together[2], ours.initial_latents(generators(3)[2:])[0])


@pytest.mark.golden
def test_shipped_pipeline_equals_diffusers():
    """With the sequence length of the card, which plain diffusers has to be told as well."""
    card = yaml.safe_load(SHIPPED.with_name("tiny_sd3.yaml").read_text())
    length = card["options"]["max_sequence_length"]
    pipeline = SD3Pipeline.from_pretrained(
        SHIPPED, process=FlowProcess(), guidance_scale=4.5, max_sequence_length=length, local_files_only=True
    )
    pipe = pipeline.diffusers_pipeline
    mixed = pipeline.encode(["a red circle", "two blue squares", "a red circle"])
    latents = euler(pipeline, mixed, num_steps=4)
    assert torch.equal(pipeline.decode(latents), diffusers_images(pipe, mixed, num_steps=4, output_type="pt"))
    theirs = pipe(
        "a red circle",
        num_images_per_prompt=3,
        num_inference_steps=4,
        guidance_scale=4.5,
        generator=generators(3),
        output_type="pt",
        max_sequence_length=length,
    ).images
    same = euler(pipeline, pipeline.encode(["a red circle"] * 3), num_steps=4)
    assert torch.equal(pipeline.decode(same), theirs)


# --- prompts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_t5", [False, True])
def test_an_embedding_does_not_depend_on_its_company(with_t5: bool):
    pipe = tiny_sd3(with_t5=with_t5)
    together = wrap(pipe, length=T5_TOKENS).encode(PROMPTS)
    for row, prompt in enumerate(PROMPTS):
        alone = wrap(pipe, length=T5_TOKENS).encode([prompt])
        for mine, theirs in zip(alone.guided(), together.rows(torch.tensor([row])).guided(), strict=True):
            assert torch.equal(mine, theirs)


def test_every_text_is_encoded_once():
    pipe = tiny_sd3()
    calls: list[int] = []
    pipe.text_encoder.register_forward_hook(lambda module, args, output: calls.append(args[0].shape[0]))
    pipeline = wrap(pipe)
    condition = pipeline.encode(["a red circle", "two blue squares", "a red circle"])
    assert calls == [1, 1, 1]  # two texts and the empty one, each alone
    pipeline.encode(["two blue squares"] * 5)
    pipeline.with_guidance(1.0).encode(["a red circle"])
    assert len(calls) == 3
    assert condition.embeds.shape[0] == 2  # one row a distinct text, gathered by index
    assert condition.index.tolist() == [0, 1, 0]
    assert torch.equal(condition.negative[0], pipeline.encode([""]).embeds)
    pipeline.clear_prompt_cache()
    pipeline.encode(["a red circle"])
    assert len(calls) == 5


def test_embeddings_carry_no_graph(ours: SD3Pipeline):
    condition = ours.encode(PROMPTS)
    assert not condition.embeds.requires_grad
    assert not condition.embeds.is_inference(), "an inference tensor could not take part in training"


def test_text_encoders_can_be_moved_away():
    pipe = tiny_sd3()
    pipeline = wrap(pipe)
    kept = pipeline.encode(["a red circle"])
    pipeline.move_text_encoders("meta")  # a device on which nothing can be computed
    assert torch.equal(pipeline.encode(["a red circle"]).embeds, kept.embeds)
    assert pipeline.device.type == "cpu"


# --- prediction --------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_guidance_is_the_line_through_both_branches(ours: SD3Pipeline):
    x, time = torch.randn(4, 4, 8, 8), torch.full((4,), 700.0)
    condition = ours.encode(PROMPTS)
    c = ours.with_guidance(1.0).predict(x, time, condition)
    u = ours.with_guidance(1.0).predict(x, time, ours.encode([""] * 4))
    for scale in (1.5, 4.5):
        guided = ours.with_guidance(scale).predict(x, time, condition)
        torch.testing.assert_close(guided, u + scale * (c - u))
    assert not torch.allclose(c, u)
    assert torch.equal(ours.with_guidance(0.5).predict(x, time, condition), c)


def test_guidance_at_one_evaluates_the_conditional_branch_only():
    pipe = tiny_sd3()
    rows: list[int] = []
    pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(kwargs["hidden_states"].shape[0]), with_kwargs=True
    )
    pipeline = wrap(pipe)
    condition, x, time = pipeline.encode(PROMPTS), torch.randn(4, 4, 8, 8), torch.full((4,), 700.0)
    pipeline.predict(x, time, condition)
    pipeline.with_guidance(1.0).predict(x, time, condition)
    assert rows == [8, 4]


def test_detached_guidance_scales_the_conditional_gradient(ours: SD3Pipeline):
    """With u constant, d(u + w (c - u)) = w dc; attached, (1 - w) du comes on top."""
    condition, time = ours.encode(PROMPTS[:2]), torch.full((2,), 500.0)
    x = torch.randn(2, 4, 8, 8, requires_grad=True)

    def gradient(pipeline: SD3Pipeline, condition: Condition) -> Tensor:
        return torch.autograd.grad(pipeline.predict(x, time, condition).sum(), x)[0]

    d_cond = gradient(ours.with_guidance(1.0), condition)
    d_uncond = gradient(ours.with_guidance(1.0), ours.encode([""] * 2))
    detached, attached = ours.with_guidance(3.0, detach_uncond=True), ours.with_guidance(3.0)
    torch.testing.assert_close(gradient(detached, condition), 3.0 * d_cond)
    torch.testing.assert_close(gradient(attached, condition), 3.0 * d_cond - 2.0 * d_uncond)
    with torch.no_grad():
        assert torch.equal(detached.predict(x, time, condition), attached.predict(x, time, condition))


@torch.no_grad()
def test_rows_may_stand_at_different_times(ours: SD3Pipeline):
    x, condition = torch.randn(2, 4, 8, 8), ours.encode(PROMPTS[:2])
    time = torch.tensor([900.0, 100.0])
    mixed = ours.predict(x, time, condition)
    for row in range(2):
        uniform = ours.predict(x, time[row].expand(2), condition)
        assert torch.equal(mixed[row], uniform[row])


@torch.no_grad()
def test_batch_size_moves_a_row_by_rounding_only(ours: SD3Pipeline):
    """What the module promises: within a batch size bits are kept, across batch sizes a few units in the last place."""
    x, condition = torch.randn(4, 4, 8, 8), ours.encode(PROMPTS)
    whole = ours.predict(x, torch.full((4,), 300.0), condition)
    for row in range(4):
        alone = ours.predict(x[row : row + 1], torch.full((1,), 300.0), condition.rows(torch.tensor([row])))
        torch.testing.assert_close(alone[0], whole[row], rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_network_has_float32_seams(tmp_path: Path, dtype: torch.dtype):
    tiny_sd3().save_pretrained(tmp_path)
    full, half = (
        SD3Pipeline.from_pretrained(tmp_path, process=FlowProcess(), max_sequence_length=0, dtype=d)
        for d in (torch.float32, dtype)
    )
    assert half.diffusers_pipeline.vae.dtype == torch.float32
    assert {parameter.dtype for parameter in half.network.parameters()} == {dtype}
    x = half.initial_latents(generators(2))
    outputs = [p.predict(x, torch.full((2,), 500.0), p.encode(PROMPTS[:2])) for p in (full, half)]
    pixels = half.decode(x)
    assert x.dtype == outputs[1].dtype == pixels.dtype == torch.float32
    torch.testing.assert_close(outputs[1], outputs[0], rtol=0.1, atol=0.1)
    assert not torch.equal(outputs[1], outputs[0])
    assert torch.equal(x, full.initial_latents(generators(2)))


# --- decoding ----------------------------------------------------------------------------------------------------


def test_decode_is_differentiable_inside_the_range_and_flat_outside(pipe, ours: SD3Pipeline):
    z = torch.randn(2, 4, 8, 8, requires_grad=True)
    pixels = ours.decode(z)
    assert pixels.shape == (2, 3, 16, 16)
    assert 0.0 <= float(pixels.detach().min()) <= float(pixels.detach().max()) <= 1.0
    assert float(torch.autograd.grad(pixels.sum(), z)[0].abs().sum()) > 0.0
    with torch.no_grad():
        pipe.vae.decoder.conv_out.bias += 100.0  # every pixel far above 1
    try:
        bright = ours.decode(z)
        assert bool((bright == 1.0).all())
        assert float(torch.autograd.grad(bright.sum(), z)[0].abs().sum()) == 0.0
    finally:
        with torch.no_grad():
            pipe.vae.decoder.conv_out.bias -= 100.0


# --- what is frozen, what is refused -----------------------------------------------------------------------------


def test_nothing_is_trainable_until_asked(pipe, ours: SD3Pipeline):
    modules = [pipe.vae, pipe.text_encoder, pipe.text_encoder_2, ours.network]
    assert not any(parameter.requires_grad for module in modules for parameter in module.parameters())
    assert not any(module.training for module in modules)
    assert ours.tuning.trainable_parameters() == []


def test_a_wrapped_network_is_called_in_place_of_the_own_one(ours: SD3Pipeline):
    class Doubled(torch.nn.Module):
        def __init__(self, inner: torch.nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, **inputs: Tensor) -> tuple[Tensor]:
            return (2.0 * self.inner(**inputs)[0],)

    x, time, condition = torch.randn(1, 4, 8, 8), torch.full((1,), 500.0), ours.encode(["a red circle"])
    doubled = ours.with_network(Doubled(ours.network))
    with torch.no_grad():
        torch.testing.assert_close(doubled.predict(x, time, condition), 2.0 * ours.predict(x, time, condition))
    assert doubled.network is ours.network


def test_refuses_what_does_not_fit(pipe, ours: SD3Pipeline):
    condition, time = ours.encode(["a red circle"]), torch.full((1,), 500.0)
    with pytest.raises(ValueError, match=r"\[N, 4, 8, 8\].*got \[1, 4, 4, 4\].*height and width"):
        ours.predict(torch.zeros(1, 4, 4, 4), time, condition)
    with pytest.raises(ValueError, match=r"got \[4, 8, 8\]"):
        ours.decode(torch.zeros(4, 8, 8))
    with pytest.raises(ValueError, match="x has 2 rows, condition 1"):
        ours.predict(torch.zeros(2, 4, 8, 8), time.expand(2), condition)
    with pytest.raises(ValueError, match="TextCondition"):
        ours.predict(torch.zeros(1, 4, 8, 8), time, [0])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no prompts"):
        ours.encode([])
    with pytest.raises(ValueError, match=r"pass \['a red circle'\]"):
        ours.encode("a red circle")
    with pytest.raises(ValueError, match="no generators"):
        ours.initial_latents([])
    with pytest.raises(ValueError, match="got nan"):
        ours.with_guidance(float("nan"))
    with pytest.raises(ValueError, match="multiples of 4 up to 64, got height=18, width=16"):
        wrap(pipe, height=18)
    with pytest.raises(ValueError, match="0 to 512 here, got 513"):
        wrap(pipe, length=513)
    with pytest.raises(ValueError, match="1 to 512 here, got 0"):
        wrap(tiny_sd3(with_t5=True), length=0)


def test_refuses_other_pipelines_and_schedulers(tmp_path: Path):
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    with pytest.raises(ValueError, match="got Linear"):
        wrap(torch.nn.Linear(1, 1))
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(ValueError, match="holds a FluxPipeline"):
        SD3Pipeline.from_pretrained(tmp_path, process=FlowProcess())
    pipe = tiny_sd3()
    pipe.scheduler = DDIMScheduler()  # type: ignore[assignment]
    with pytest.raises(ValueError, match="DDIMScheduler"):
        wrap(pipe)
