"""Guidance as algebra, and how often each form of it calls the network."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from difalign.pipelines.guidance import (
    EmbeddedGuidance,
    Guidance,
    Guides,
    NormKeepingGuidance,
    Unguided,
    classifier_free,
    norm_kept,
)
from difalign.pipelines.prompt_cache import Embedding
from difalign.pipelines.text_condition import TextCondition


@pytest.mark.parametrize("detach_uncond", [False, True])
def test_scale_one_is_conditional_and_zero_is_unconditional(detach_uncond: bool):
    u, c = torch.randn(2, 3, 4, dtype=torch.float64), torch.randn(2, 3, 4, dtype=torch.float64)
    torch.testing.assert_close(classifier_free(u, c, 1.0, detach_uncond=detach_uncond), c)
    assert torch.equal(classifier_free(u, c, 0.0, detach_uncond=detach_uncond), u)
    assert torch.equal(classifier_free(c, c, 7.0, detach_uncond=detach_uncond), c)


def test_gradient_weights_are_one_minus_w_and_w():
    u, c = (torch.randn(5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    for detach_uncond, expected in ((False, -2.5), (True, None)):
        u.grad = c.grad = None
        classifier_free(u, c, 3.5, detach_uncond=detach_uncond).sum().backward()
        torch.testing.assert_close(c.grad, torch.full_like(c, 3.5))
        assert u.grad is None if expected is None else torch.allclose(u.grad, torch.full_like(u, expected))


# --- the forms of guidance ---------------------------------------------------------------------------------------


def condition(rows: int = 2) -> TextCondition:
    """Prompts that are 3, pointed away from 1."""
    return TextCondition((torch.full((1, 1, 4), 3.0),), (torch.ones(1, 1, 4),), torch.zeros(rows, dtype=torch.int64))


@dataclass
class Recorder:
    """A network whose output is x plus the text times x squared; it remembers the rows of its calls."""

    rows: list[int] = field(default_factory=list)

    def __call__(self, x: Tensor, model_time: Tensor, texts: Embedding) -> Tensor:
        assert x.shape[0] == model_time.shape[0] == texts[0].shape[0]
        self.rows.append(x.shape[0])
        return x + texts[0] * x.square()


FORMS: dict[str, tuple[Guides, list[int], list[int]]] = {  # at a scale of 1: rows of the calls there and at 3
    "classifier-free": (Guidance(1.0), [2], [4]),
    "norm kept": (NormKeepingGuidance(1.0), [2], [2, 2]),
    "embedded": (EmbeddedGuidance(1.0), [2], [2]),
}


@pytest.mark.parametrize("name", FORMS)
def test_calls_of_the_network(name: str):
    form, plain, guided = FORMS[name]
    for scale, rows in ((1.0, plain), (3.0, guided)):
        network = Recorder()
        at = form.at(scale, detach_uncond=True)
        assert (type(at), at.scale) == (type(form), scale)
        at.branches(network, torch.randn(2, 5, 4), torch.zeros(2), condition())
        assert network.rows == rows


def test_without_guidance_only_none_is_taken():
    assert Unguided(0.0).at(1.0).scale == 1.0
    network, x = Recorder(), torch.randn(2, 5, 4)
    assert torch.equal(Unguided(1.0).branches(network, x, torch.zeros(2), condition()).guided, x + 3.0 * x.square())
    with pytest.raises(ValueError, match=r"guidance_scale = 1\.5: .*set guidance to 1"):
        Unguided(1.0).at(1.5)


@pytest.mark.parametrize("form", [Guidance, NormKeepingGuidance, EmbeddedGuidance, Unguided])
def test_a_scale_is_a_finite_number_of_at_least_zero(form: type[Guidance]):
    for scale in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"got {scale}"):
            form(scale)


def test_the_length_is_kept_for_every_token_and_the_direction_is_that_of_guidance():
    u, c = torch.randn(2, 3, 4, dtype=torch.float64), torch.randn(2, 3, 4, dtype=torch.float64)
    guided = classifier_free(u, c, 4.0, detach_uncond=False)
    kept = norm_kept(guided, c)
    torch.testing.assert_close(kept.norm(dim=-1), c.norm(dim=-1))
    torch.testing.assert_close(torch.cosine_similarity(kept, guided, dim=-1), torch.ones(2, 3, dtype=torch.float64))
    torch.testing.assert_close(norm_kept(7.0 * c, c), c)  # a stretch alone is undone


def test_a_detached_branch_leaves_no_graph_and_the_same_value():
    x = torch.randn(2, 5, 4, dtype=torch.float64, requires_grad=True)
    c, u = x + 3.0 * x.square(), (x + x.square()).detach()
    guided = u + 4.0 * (c - u)
    by_hand = guided * c.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True)
    weight = torch.randn_like(x).detach()
    outputs = [
        NormKeepingGuidance(4.0, detach).branches(Recorder(), x, torch.zeros(2), condition()).guided
        for detach in (True, False)
    ]
    torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=0)
    wanted, detached, attached = (torch.autograd.grad((o * weight).sum(), x)[0] for o in (by_hand, *outputs))
    torch.testing.assert_close(detached, wanted)
    assert not torch.allclose(attached, detached)
