"""Evaluations a row, counted on toys with and without guidance."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from difalign.search.probe import evaluations_a_row
from tests.search.judges import GuidedToy
from tests.toys import ElementwisePolicy, ToyPipeline, elementwise_pipeline


def test_both_branches_of_guidance_are_counted():
    grid = elementwise_pipeline().grid(4)
    assert evaluations_a_row(elementwise_pipeline(), "0.5", grid) == 1
    assert evaluations_a_row(GuidedToy(network=ElementwisePolicy()), "0.5", grid) == 2


def test_no_hook_is_left_behind():
    pipeline = elementwise_pipeline()
    evaluations_a_row(pipeline, "0.5", pipeline.grid(4))
    assert not pipeline.network._forward_pre_hooks


class Elsewhere(ToyPipeline):
    def predict(self, x, model_time, condition):
        return torch.zeros_like(x)


def test_a_network_that_is_not_called_is_an_error():
    with pytest.raises(ValueError, match="branches by hand"):
        evaluations_a_row(Elsewhere(network=nn.Identity()), "0.5", elementwise_pipeline().grid(4))
