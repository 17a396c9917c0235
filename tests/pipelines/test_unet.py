"""The UNet adapters against diffusers itself, on a random Stable Diffusion and a random XL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from difalign.core.gaussian import sample
from difalign.core.protocols import Condition, Pipeline, TrainablePipeline
from difalign.pipelines.ddim import ddim_scheduler
from difalign.pipelines.sdxl import SDXL
from difalign.pipelines.stable_diffusion import STABLE_DIFFUSION
from difalign.pipelines.unet import UNetPipeline
from difalign.process.diffusion import DiffusionProcess
from difalign.process.flow import FlowProcess
from tests.pipelines.unets import EVERY_FAMILY, FAMILIES, diffusers_images, generators, make, walk
from tests.tiny_models import PROMPTS, ddim, tiny_sd, tiny_sdxl, unet


@pytest.fixture(scope="module")
def made() -> dict[str, UNetPipeline]:
    """One pipeline a family; tests that change it make their own."""
    return {name: make(name, guidance_scale=4.0) for name in FAMILIES}


@EVERY_FAMILY
def test_satisfies_the_protocols(made: dict[str, UNetPipeline], name: str):
    assert isinstance(made[name], Pipeline)
    assert isinstance(made[name], TrainablePipeline)
    assert isinstance(made[name].encode(["a red circle"]), Condition)
    assert made[name].modality == "image"


# --- equal to diffusers --------------------------------------------------------------------------------------------


@EVERY_FAMILY
@pytest.mark.parametrize("num_steps", [1, 4, 7])
@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_noise_free_walk_equals_diffusers_bit_for_bit(
    made: dict[str, UNetPipeline], name: str, guidance_scale: float, num_steps: int
):
    pipeline = made[name].with_guidance(guidance_scale)
    condition = pipeline.encode(PROMPTS)
    latents = walk(pipeline, condition, num_steps=num_steps)
    for output_type, mine in (("latent", latents), ("pt", pipeline.decode(latents))):
        theirs = diffusers_images(
            pipeline, condition, num_inference_steps=num_steps, guidance_scale=guidance_scale, output_type=output_type
        )
        assert torch.equal(mine, theirs)


@EVERY_FAMILY
def test_stochastic_walk_equals_diffusers_given_its_noise(made: dict[str, UNetPipeline], name: str):
    """With eta 1 and a generator a row, diffusers draws the start and then the noise of every step from it."""
    pipeline, steps = made[name], 5
    condition = pipeline.encode(PROMPTS[:2])
    sources = generators(2)
    grid, x = pipeline.grid(steps), pipeline.initial_latents(sources)
    with torch.no_grad():
        for i in range(steps):
            prediction = pipeline.predict(x, grid.model_time[i].expand(2), condition)
            noise = torch.cat([torch.randn((1, *x.shape[1:]), generator=source) for source in sources])
            x = sample(pipeline.process.transition(x, prediction, grid, i, 1.0), noise)
    theirs = diffusers_images(
        pipeline, condition, num_inference_steps=steps, guidance_scale=4.0, eta=1.0, output_type="latent"
    )
    assert torch.equal(x, theirs)


@EVERY_FAMILY
def test_one_prompt_many_seeds_equals_diffusers(name: str):
    pipeline = make(name, guidance_scale=4.0, height=24, width=16)
    latents = walk(pipeline, pipeline.encode([PROMPTS[2]] * 3), num_steps=3)
    theirs = pipeline.diffusers_pipeline(
        PROMPTS[2],
        height=24,
        width=16,
        num_images_per_prompt=3,
        num_inference_steps=3,
        guidance_scale=4.0,
        generator=generators(3),
        output_type="pt",
    ).images
    assert theirs.shape == (3, 3, 24, 16)
    assert torch.equal(pipeline.decode(latents), theirs)


@pytest.mark.parametrize(
    "options",
    [
        {"prediction_type": "v_prediction"},
        {"prediction_type": "sample"},
        {"timestep_spacing": "trailing", "set_alpha_to_one": True},
        {"timestep_spacing": "linspace"},
        {"timestep_spacing": "trailing", "prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
    ],
    ids=str,
)
def test_the_stored_schedule_is_walked_as_diffusers_walks_it(options: dict[str, Any]):
    pipeline = STABLE_DIFFUSION(tiny_sd(scheduler=ddim(**options)), process=DiffusionProcess(), guidance_scale=4.0)
    condition = pipeline.encode(PROMPTS[:2])
    theirs = diffusers_images(pipeline, condition, num_inference_steps=6, guidance_scale=4.0, output_type="latent")
    assert theirs.isfinite().all()
    assert torch.equal(walk(pipeline, condition, num_steps=6), theirs)


def test_sdxl_with_an_encoded_negative_equals_diffusers():
    pipeline = SDXL(tiny_sdxl(zero_negative=False), process=DiffusionProcess(), guidance_scale=4.0)
    assert float(pipeline.encode(["a red circle"]).negative[0].abs().sum()) > 0
    zeros = make("sdxl").encode(["a red circle"]).negative
    assert all(float(values.abs().sum()) == 0 for values in zeros)
    theirs = pipeline.diffusers_pipeline(
        PROMPTS[1],
        num_images_per_prompt=2,
        num_inference_steps=3,
        guidance_scale=4.0,
        generator=generators(2),
        output_type="latent",
    ).images
    assert torch.equal(walk(pipeline, pipeline.encode([PROMPTS[1]] * 2), num_steps=3), theirs)


def test_sdxl_decodes_with_the_statistics_of_its_latents():
    pipe = tiny_sdxl()
    pipe.vae.register_to_config(latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.5, 0.5, 2.0, 1.0])
    pipeline = SDXL(pipe, process=DiffusionProcess(), guidance_scale=1.0)
    condition = pipeline.encode(PROMPTS[:1])
    theirs = diffusers_images(pipeline, condition, num_inference_steps=2, guidance_scale=1.0, output_type="pt")
    with torch.no_grad():
        assert torch.equal(pipeline.decode(walk(pipeline, condition, num_steps=2)), theirs)


def test_sdxl_is_told_the_size_of_the_picture():
    x, time = torch.randn(1, 4, 8, 8), torch.tensor([500])
    pipeline = make("sdxl", guidance_scale=1.0)
    seen: list[Tensor] = []
    pipeline.network.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["added_cond_kwargs"]["time_ids"]), with_kwargs=True
    )
    pipeline.predict(x, time, pipeline.encode(["a red circle"]))
    assert seen[0].tolist() == [[16, 16, 0, 0, 16, 16]]


# --- prompts and guidance ------------------------------------------------------------------------------------------


@EVERY_FAMILY
def test_every_text_is_encoded_once(name: str):
    pipeline = make(name)
    calls: list[int] = []
    pipeline.diffusers_pipeline.text_encoder.register_forward_hook(
        lambda module, args, output: calls.append(args[0].shape[0])
    )
    condition = pipeline.encode(["a red circle", "two blue squares", "a red circle"])
    assert calls == [1, 1, 1]  # two texts and the empty one, each alone
    pipeline.with_guidance(1.0).encode(["a red circle"] * 5)
    assert len(calls) == 3
    assert condition.index.tolist() == [0, 1, 0]
    assert not condition.embeds.requires_grad
    pipeline.clear_prompt_cache()
    pipeline.encode(["a red circle"])
    assert len(calls) == 5


@EVERY_FAMILY
def test_text_encoders_can_be_moved_away(name: str):
    pipeline = make(name)
    kept = pipeline.encode(["a red circle"])
    pipeline.move_text_encoders("meta")  # a device on which nothing can be computed
    assert torch.equal(pipeline.encode(["a red circle"]).embeds, kept.embeds)


@EVERY_FAMILY
def test_guidance_at_one_evaluates_the_conditional_branch_only(name: str):
    pipeline, rows = make(name, guidance_scale=4.0), []
    pipeline.network.register_forward_pre_hook(lambda module, args: rows.append(args[0].shape[0]))
    condition, x, time = pipeline.encode(PROMPTS), torch.randn(4, 4, 8, 8), torch.full((4,), 700)
    pipeline.predict(x, time, condition)
    pipeline.with_guidance(1.0).predict(x, time, condition)
    assert rows == [8, 4]


@torch.no_grad()
def test_rows_may_stand_at_different_timesteps(made: dict[str, UNetPipeline]):
    pipeline = made["sd"]
    x, time, condition = torch.randn(3, 4, 8, 8), torch.tensor([900, 500, 1]), pipeline.encode(PROMPTS[:3])
    together = pipeline.predict(x, time, condition)
    for row in range(3):
        alone = pipeline.predict(x[row : row + 1], time[row : row + 1], condition.rows(torch.tensor([row])))
        torch.testing.assert_close(alone[0], together[row], rtol=1e-4, atol=1e-5)


def test_a_wrapped_network_is_called_in_place_of_the_own_one(made: dict[str, UNetPipeline]):
    class Doubled(torch.nn.Module):
        def __init__(self, inner: torch.nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, *inputs: Tensor, **named: Any) -> tuple[Tensor]:
            return (2.0 * self.inner(*inputs, **named)[0],)

    pipeline = made["sd"]
    x, time, condition = torch.randn(1, 4, 8, 8), torch.tensor([500]), pipeline.encode(["a red circle"])
    doubled = pipeline.with_network(Doubled(pipeline.network))
    with torch.no_grad():
        torch.testing.assert_close(doubled.predict(x, time, condition), 2.0 * pipeline.predict(x, time, condition))
    assert doubled.network is pipeline.network


# --- the scheduler -------------------------------------------------------------------------------------------------


def test_whatever_the_sampler_was_it_becomes_ddim_with_its_betas(made: dict[str, UNetPipeline]):
    for name, stored in (("sd", tiny_sd().scheduler), ("sdxl", tiny_sdxl().scheduler)):
        scheduler = made[name].diffusers_pipeline.scheduler
        assert type(scheduler).__name__ == "DDIMScheduler"
        assert torch.equal(scheduler.alphas_cumprod, stored.alphas_cumprod)
        assert not scheduler.config.clip_sample
        assert scheduler.config.steps_offset == 1


def test_a_chain_that_starts_from_pure_noise_is_refused_where_it_says_nothing():
    with pytest.raises(ValueError, match="prediction_type = epsilon"):
        ddim_scheduler(ddim(rescale_betas_zero_snr=True))


@pytest.mark.parametrize("option", ["clip_sample", "thresholding"])
def test_clipping_is_refused(option: str):
    with pytest.raises(ValueError, match=f"{option} = true.*scheduler_config.json"):
        ddim_scheduler(ddim(**{option: True}))


def test_flow_schedulers_and_flow_processes_are_refused():
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

    with pytest.raises(ValueError, match="has no betas"):
        ddim_scheduler(FlowMatchEulerDiscreteScheduler())
    with pytest.raises(ValueError, match=r"got FlowProcess.*family: diffusion"):
        STABLE_DIFFUSION(tiny_sd(), process=FlowProcess())


def test_step_counts_out_of_range_are_refused(made: dict[str, UNetPipeline]):
    for steps in (0, 1001):
        with pytest.raises(ValueError, match=rf"1 to 1000 steps, got num_steps={steps}"):
            made["sd"].grid(steps)
    with pytest.raises(ValueError, match="beyond the 1000 of training"):
        made["sd"].grid(1000)  # with the offset of 1 the first timestep is 1000


def test_what_does_not_fit_is_refused(tmp_path: Path, made: dict[str, UNetPipeline]):
    with pytest.raises(ValueError, match="wraps a StableDiffusionPipeline, got StableDiffusionXLPipeline"):
        STABLE_DIFFUSION(tiny_sdxl(), process=DiffusionProcess())
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(ValueError, match="holds a FluxPipeline"):
        SDXL.from_pretrained(tmp_path, process=DiffusionProcess())
    with pytest.raises(ValueError, match="multiples of 2, got height=17, width=16"):
        make("sd", height=17)
    with pytest.raises(ValueError, match=r"\[N, 4, 8, 8\].*got \[1, 4, 4, 4\]"):
        made["sd"].decode(torch.zeros(1, 4, 4, 4))
    pipe = tiny_sd()
    pipe.unet = unet(seed=0, time_cond_proj_dim=4)
    with pytest.raises(ValueError, match="takes its guidance as an input"):
        STABLE_DIFFUSION(pipe, process=DiffusionProcess())
