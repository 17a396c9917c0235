"""Classifier-free guidance as algebra."""

from __future__ import annotations

import pytest
import torch

from difalign.pipelines.guidance import classifier_free


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
