"""What every scorer does with its network: freeze it, place it, and feed it a few pictures at a time."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

_DTYPES = ("float32", "bfloat16", "float16")
_M = TypeVar("_M", bound=nn.Module)


def named_dtype(name: str) -> torch.dtype:
    """The dtype of a name.

    Raises:
        ValueError: if scorers do not compute in it.
    """
    if name not in _DTYPES:
        raise ValueError(f"dtype = {name!r}: use one of: {', '.join(_DTYPES)}")
    return getattr(torch, name)


def frozen(network: _M) -> _M:
    """The network without dropout and without gradients to its weights; those to its inputs pass."""
    return network.eval().requires_grad_(False)


def in_training(network: nn.Module) -> bool:
    """Whether some of its weights ask for a gradient, so that what it has read before no longer holds."""
    return any(parameter.requires_grad for parameter in network.parameters())


def move(network: nn.Module, device: str | torch.device) -> None:
    """Move the weights; for transformers' classes, whose own ``to`` is annotated in a way that no checker reads."""
    network.to(device)


def check_micro_batch(size: int) -> int:
    """The size, if it is one.

    Raises:
        ValueError: if it is below 1.
    """
    if size < 1:
        raise ValueError(f"micro_batch = {size}: must be at least 1")
    return size


def shared_copy(network: nn.Module) -> nn.Module:
    """A network of its own over the same tensors: giving it other ones leaves the first as it is."""
    tensors = [*network.parameters(), *network.buffers()]
    return copy.deepcopy(network, {id(tensor): tensor for tensor in tensors})


def in_micro_batches(compute: Callable[[Tensor], Tensor], media: Tensor, size: int) -> Tensor:
    """``compute`` of ``size`` rows at a time, put together, [N, ...] float32."""
    return torch.cat([compute(part) for part in media.split(size)]).float()
