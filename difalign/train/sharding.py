"""Weights that lie in parts on all processes: torch's fully sharded data parallelism, and what training asks of it.

Every process holds one part of each parameter, of its moments, of its average and of the reference copy (ZeRO,
Rajbhandari et al., arXiv 1910.02054). A forward with gradient gathers one block of layers at a time, so that *all*
processes must make the same number of them. Sampling gathers the whole network once instead, and is then free to make
as many forwards as its rows need.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


@dataclass(frozen=True, slots=True)
class Sharding:
    """How a network is taken apart."""

    reshard_after_forward: bool = True  # False keeps gathered blocks until their backward: ZeRO stage 2
    layers: tuple[str, ...] | None = None  # classes that are gathered as one; None = what the network names itself


@final
class Sharded:
    """Networks in parts; the first is trained, the others are only asked.

    Args:
        networks: taken apart in place; their parameters are replaced, so that an optimiser has to be made afterwards.
        mesh: the processes, in one dimension.
        sharding: how.

    Raises:
        ValueError: if a class of layers does not occur in the trained network.
    """

    def __init__(self, networks: Sequence[nn.Module], mesh: DeviceMesh, sharding: Sharding) -> None:
        self._sharding = sharding
        self._units: list[FSDPModule] = []
        for network in networks:
            units = _take_apart(network, mesh, sharding)
            self._units = self._units or units

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Inside, the trained network is whole on every process: forwards without gradient need no others."""
        for unit in self._units:
            unit.set_reshard_after_forward(False, recurse=False)
            unit.unshard()
        try:
            yield
        finally:
            for unit in self._units:
                unit.reshard()
                unit.set_reshard_after_forward(self._sharding.reshard_after_forward, recurse=False)


def collect(tensors: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """The tensors as they would be on one process; those in parts are put together one by one, on the CPU.

    All processes must call; those that do not ``keep`` get an empty mapping and never hold more than one whole tensor.
    """
    collected: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        whole = tensor.full_tensor().detach().cpu() if isinstance(tensor, DTensor) else tensor
        if keep:
            collected[name] = whole
    return collected


def like(tensor: Tensor, pattern: Tensor) -> Tensor:
    """A whole tensor, which every process holds, as the part of it that ``pattern`` has here; no communication."""
    if not isinstance(pattern, DTensor):
        return tensor
    placed = tensor.to(pattern.device)
    return distribute_tensor(placed, pattern.device_mesh, pattern.placements, src_data_rank=None)


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process has; all of it, where it is not in parts."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def number(tensor: Tensor) -> float:
    """A scalar, whose parts are put together first where it is in parts; then all processes must call."""
    return float(tensor.full_tensor()) if isinstance(tensor, DTensor) else float(tensor)


def _take_apart(network: nn.Module, mesh: DeviceMesh, sharding: Sharding) -> list[FSDPModule]:
    """Shard the named layers, innermost first, and then what is left."""
    names = sharding.layers
    if names is None:
        names = tuple(getattr(network, "_no_split_modules", None) or ())  # as diffusers and transformers tell
    missing = set(names) - {type(module).__name__ for module in network.modules()}
    if sharding.layers is not None and missing:
        raise ValueError(
            f"{type(network).__name__} has no layers of class {sorted(missing)}; "
            "correct fsdp_transformer_layer_cls_to_wrap, or leave it out"
        )
    layers = [module for module in network.modules() if type(module).__name__ in names and module is not network]
    units: list[FSDPModule] = []
    for module in (*reversed(layers), network):
        unit = fully_shard(module, mesh=mesh, reshard_after_forward=sharding.reshard_after_forward)
        # Losses are already divided by the rows of all processes, so gradients are summed; gloo knows no other.
        unit.set_gradient_divide_factor(1.0)
        unit.set_force_sum_reduction_for_comms(True)
        units.append(unit)
    return units


def zeros_where_missing(parameters: Sequence[nn.Parameter]) -> None:
    """Give every parameter a gradient."""
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
