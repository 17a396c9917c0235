"""What FLUX has for itself: a guidance scale that the network takes as an input, or none."""

from __future__ import annotations

import pytest
import torch

from difalign.pipelines.flux import FLUX
from difalign.process.flow import FlowProcess
from tests.pipelines.packed import LATENT, make
from tests.tiny_models import PROMPTS
from tests.tiny_packed import tiny_flux

TIME = torch.tensor([800.0, 200.0])


def test_the_scale_is_an_input_and_every_scale_takes_one_row_a_row():
    pipeline, seen = make("flux"), []
    pipeline.network.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append((kwargs["guidance"].tolist(), kwargs["timestep"].tolist())),
        with_kwargs=True,
    )
    condition, x = pipeline.encode(PROMPTS[:2]), torch.randn(2, *LATENT)
    with torch.no_grad():
        outputs = [pipeline.with_guidance(w).predict(x, TIME, condition) for w in (0.0, 1.0, 3.5)]
    time = pytest.approx([0.8, 0.2])
    assert seen == [([0.0] * 2, time), ([1.0] * 2, time), ([3.5] * 2, time)]
    assert all(not torch.allclose(outputs[i], outputs[j]) for i, j in ((0, 1), (1, 2)))


def test_there_is_nothing_to_detach():
    pipeline = make("flux")
    condition = pipeline.encode(PROMPTS[:2])
    x = torch.randn(2, *LATENT, requires_grad=True)
    attached, detached = (
        torch.autograd.grad(pipeline.with_guidance(3.5, detach_uncond=d).predict(x, TIME, condition).sum(), x)[0]
        for d in (False, True)
    )
    assert torch.equal(attached, detached)
    assert condition.negative == ()


def test_a_network_without_a_guidance_input_takes_no_guidance():
    """FLUX.1 [schnell]: diffusers leaves out whatever scale it is given."""
    pipe = tiny_flux(schnell=True)
    pipeline = FLUX(pipe, process=FlowProcess(), max_sequence_length=12, height=16, width=16)
    assert pipeline.guidance_scale == 1.0
    x, condition = torch.randn(2, *LATENT), pipeline.encode(PROMPTS[:2])
    with torch.no_grad():
        assert torch.equal(
            pipeline.with_guidance(0.0).predict(x, TIME, condition), pipeline.predict(x, TIME, condition)
        )
    with pytest.raises(ValueError, match=r"guidance_scale = 3\.5: .*takes none; set guidance to 1"):
        pipeline.with_guidance(3.5)
    with pytest.raises(ValueError, match="takes none"):
        FLUX(pipe, process=FlowProcess(), guidance_scale=2.0)


def test_the_scale_of_the_published_model_is_the_default():
    assert FLUX(tiny_flux(), process=FlowProcess()).guidance_scale == 3.5
