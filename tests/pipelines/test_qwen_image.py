"""What Qwen-Image has for itself: texts of different lengths, guidance that keeps lengths, a given last level."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from difalign.core.protocols import Condition
from difalign.pipelines.latents import pack
from difalign.pipelines.packed import PackedPipeline
from tests.pipelines.packed import LATENT, TEXT_TOKENS, make
from tests.tiny_models import PROMPTS
from tests.tiny_packed import qwen_transformer, tiny_qwen_image

TIME = torch.tensor([800.0, 200.0])
LONGER, SHORTER = "a green cross above a blue circle", "a red circle"


@pytest.fixture(scope="module")
def ours() -> PackedPipeline:
    return make("qwen")


def latents() -> Tensor:
    return torch.randn(2, *LATENT, generator=torch.Generator().manual_seed(1))


# --- texts -------------------------------------------------------------------------------------------------------


def test_the_instruction_is_dropped_and_shorter_texts_are_padded_with_a_mask(ours: PackedPipeline):
    alone = ours.encode([SHORTER])
    assert len(alone.table) == 1  # nothing to mask
    tokenizer = ours.diffusers_pipeline.tokenizer
    after = tokenizer(f"{SHORTER}<|im_end|>\n<|im_start|>assistant\n").input_ids
    assert alone.embeds.shape == (1, len(after), 16)
    both = ours.encode([LONGER, SHORTER])
    embeds, mask = both.table
    assert mask.sum(1).tolist() == [embeds.shape[1], len(after)]
    assert torch.equal(embeds[1, : len(after)], alone.embeds[0])
    assert not embeds[1, len(after) :].any()


@torch.no_grad()
def test_padding_moves_a_row_by_rounding_only(ours: PackedPipeline):
    padded = ours.encode([LONGER, SHORTER]).rows(torch.tensor([1, 1]))
    whole = ours.predict(latents(), TIME, padded)
    torch.testing.assert_close(whole, ours.predict(latents(), TIME, ours.encode([SHORTER] * 2)), rtol=1e-4, atol=1e-5)


def test_texts_are_cut_at_the_length_asked_for():
    pipeline = make("qwen", max_sequence_length=3)
    assert pipeline.encode([LONGER, SHORTER]).embeds.shape[1] == 3
    assert make("qwen", max_sequence_length=TEXT_TOKENS).encode([LONGER]).embeds.shape[1] > 3


# --- guidance ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_guidance_turns_every_token_and_keeps_its_length(ours: PackedPipeline):
    x, condition = latents(), ours.encode(PROMPTS[:2])
    c = ours.with_guidance(1.0).predict(x, TIME, condition)
    u = ours.with_guidance(1.0).predict(x, TIME, ours.encode([" "] * 2))
    guided = ours.with_guidance(4.0).predict(x, TIME, condition)
    turned = u + 4.0 * (c - u)
    torch.testing.assert_close(pack(guided).norm(dim=-1), pack(c).norm(dim=-1))
    cosine = torch.cosine_similarity(pack(guided), pack(turned), dim=-1)
    torch.testing.assert_close(cosine, torch.ones_like(cosine))
    assert not torch.allclose(guided, turned)
    assert torch.equal(ours.with_guidance(0.5).predict(x, TIME, condition), c)


def test_branches_are_two_calls_and_no_guidance_is_one():
    pipeline, rows = make("qwen"), []
    pipeline.network.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(kwargs["hidden_states"].shape[0]), with_kwargs=True
    )
    condition = pipeline.encode(PROMPTS[:2])
    with torch.no_grad():
        pipeline.predict(latents(), TIME, condition)
        pipeline.with_guidance(1.0).predict(latents(), TIME, condition)
    assert rows == [2, 2, 2]


def test_detached_guidance_lets_gradient_through_the_conditional_branch_only(ours: PackedPipeline):
    """With u constant in g = u + w (c - u) and v = g |c| / |g|, all else follows from c."""
    condition, x = ours.encode(PROMPTS[:2]), latents().requires_grad_()
    plain = ours.with_guidance(1.0)

    def gradient(pipeline: PackedPipeline, condition: Condition) -> Tensor:
        return torch.autograd.grad(pipeline.predict(x, TIME, condition).square().sum(), x)[0]

    def by_hand(u: Tensor, c: Tensor) -> Tensor:
        g = u + 3.0 * (c - u)
        v = g * (c.norm(dim=-1, keepdim=True) / g.norm(dim=-1, keepdim=True))
        weight = torch.arange(v.numel(), dtype=v.dtype).view_as(v).cos()  # |v|^2 alone would not know of u
        return torch.autograd.grad((v * weight).sum(), x)[0]

    def weighted(pipeline: PackedPipeline) -> Tensor:
        v = pack(pipeline.predict(x, TIME, condition))
        weight = torch.arange(v.numel(), dtype=v.dtype).view_as(v).cos()
        return torch.autograd.grad((v * weight).sum(), x)[0]

    c, u = (pack(plain.predict(x, TIME, of)) for of in (condition, ours.encode([" "] * 2)))
    detached, attached = ours.with_guidance(3.0, detach_uncond=True), ours.with_guidance(3.0)
    torch.testing.assert_close(weighted(detached), by_hand(u.detach(), c), rtol=1e-4, atol=1e-5)
    c, u = (pack(plain.predict(x, TIME, of)) for of in (condition, ours.encode([" "] * 2)))
    torch.testing.assert_close(weighted(attached), by_hand(u, c), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(weighted(attached), weighted(detached))
    assert torch.allclose(gradient(attached, condition), gradient(plain, condition), rtol=1e-3, atol=1e-4)
    assert torch.equal(detached.predict(x, TIME, condition), attached.predict(x, TIME, condition))


def test_a_network_that_takes_its_guidance_as_an_input_is_refused():
    pipe: Any = tiny_qwen_image()
    pipe.transformer = qwen_transformer(seed=1, guidance_embeds=True)
    with pytest.raises(ValueError, match="takes its guidance as an input"):
        make("qwen", pipe=pipe)


# --- levels ------------------------------------------------------------------------------------------------------


def test_the_last_level_is_the_schedulers_and_needs_two_steps(ours: PackedPipeline):
    assert float(ours.grid(10).sigma[-2]) == pytest.approx(0.02, abs=1e-6)
    with pytest.raises(ValueError, match="at least 2 step"):
        ours.grid(1)
