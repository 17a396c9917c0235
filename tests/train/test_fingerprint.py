"""A fingerprint that sees every bit, and the seal made of it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from difalign.train.fingerprint import WeightSeal, fingerprint


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))


def seal_of(model: nn.Module) -> WeightSeal:
    seal = WeightSeal(list(model.parameters()))
    seal.close()
    return seal


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_the_last_bit_of_one_weight_shows(dtype) -> None:
    model = network().to(dtype)
    parameters = list(model.parameters())
    before = fingerprint(parameters)
    assert fingerprint(parameters) == before
    with torch.no_grad():
        weight = parameters[2][1, 1]
        parameters[2][1, 1] = torch.nextafter(weight.float(), torch.tensor(9.0)).to(dtype)
        if dtype in (torch.float16, torch.bfloat16):
            parameters[2][1, 1] = (weight.view(torch.int16) + 1).view(dtype)
    assert fingerprint(parameters) != before


def test_two_tensors_that_change_places_show() -> None:
    first, second = (nn.Parameter(torch.full((3,), value)) for value in (1.0, 2.0))
    assert fingerprint([first, second]) != fingerprint([second, first])


def test_strides_do_not_matter() -> None:
    values = torch.randn(3, 5)
    strided = nn.Parameter(values.t().contiguous().t())
    assert not strided.is_contiguous()
    assert fingerprint([strided]) == fingerprint([nn.Parameter(values)])


def test_no_weights_have_a_fingerprint() -> None:
    assert fingerprint([]) == 0


def test_an_unbroken_seal_passes() -> None:
    model = network()
    seal_of(model).check(model, list(model.parameters()), phase="sampling")


def test_a_weight_that_was_written_to_breaks_it() -> None:
    model = network()
    seal = seal_of(model)
    with torch.no_grad():
        model[1].bias.add_(1e-6)  # type: ignore[index, union-attr]
    with pytest.raises(RuntimeError, match=r"before sampling: the weights are not those that training left"):
        seal.check(model, list(model.parameters()), phase="sampling")
    seal.close()
    seal.check(model, list(model.parameters()), phase="sampling")


def test_a_copy_that_samples_breaks_it() -> None:
    model, copied = network(), network()
    seal = seal_of(model)
    with pytest.raises(RuntimeError, match=r"4 weights are not those of the network that samples \(4 of them"):
        seal.check(copied, list(model.parameters()), phase="sampling")
    with pytest.raises(RuntimeError, match=r"4 of its own are not trained"):
        seal.check(copied, list(copied.parameters()), phase="sampling")
