"""The processes of a run: who they are and what they exchange. The only module that knows accelerate."""

from __future__ import annotations

import gc
import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar, final

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs, broadcast_object_list, gather_object, reduce
from accelerate.utils.memory import clear_device_cache
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor

from difalign.train.launching import requested_sharding
from difalign.train.sharding import Sharded, collect, number, zeros_where_missing

T = TypeVar("T")

Store = distributed.Store

_WAIT_SECONDS = 1800.0  # the longest wait in one collective, as gloo has it by default


@final
class Runtime:
    """One process among equals.

    Gradients are summed over processes in one flat collective just before the optimiser's step. Processes may
    therefore run different numbers of backward passes between two steps without waiting for one another, and rows
    kept unevenly after filtering still weigh the same: the loss of each row is divided by the global count.

    Where the launcher asks for sharding (FSDP2), ``shard`` takes the networks apart. Each backward pass then is a
    collective, so that all processes must make the same number of them; ``most`` says how many.

    Args:
        mixed_precision: ``no``, ``fp16`` or ``bf16``.
        wait_seconds: the longest wait in one collective; whoever waits longer fails.

    Raises:
        ConfigError: if the launcher asks for what is not supported.
    """

    def __init__(self, *, mixed_precision: str = "no", wait_seconds: float = _WAIT_SECONDS) -> None:
        self._sharding = requested_sharding()
        self._sharded: Sharded | None = None
        patience = InitProcessGroupKwargs(timeout=timedelta(seconds=wait_seconds))
        self._accelerator = Accelerator(mixed_precision=mixed_precision, kwargs_handlers=[patience])

    @property
    def rank(self) -> int:
        """This process's number, from 0."""
        return self._accelerator.process_index

    @property
    def world(self) -> int:
        """How many processes there are."""
        return self._accelerator.num_processes

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and talks to the user."""
        return self._accelerator.is_main_process

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        return self._accelerator.device

    def share(self, items: Sequence[T]) -> list[T]:
        """This process's part of a list that all hold: every world-th item, starting at the rank."""
        return list(items[self.rank :: self.world])

    def gather(self, items: list[T]) -> list[T]:
        """The items of all processes, in order of rank; lists may differ in length."""
        return gather_object(items) if self.world > 1 else items

    def agree(self, value: T) -> T:
        """The main process's value, on every process."""
        return broadcast_object_list([value])[0] if self.world > 1 else value

    def most(self, count: int) -> int:
        """The largest count of any process."""
        return max(self.gather([count]))

    def total(self, values: Sequence[float]) -> list[float]:
        """Sum each value over all processes, in float64."""
        if self.world == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        return self._reduce(tensor).tolist()

    @property
    def shards(self) -> bool:
        """Whether the weights lie in parts, as the launcher asks; one process alone has them whole."""
        return self._sharding is not None and self.world > 1

    def shard(self, networks: Sequence[nn.Module]) -> None:
        """Take networks apart in place, the trained one first; nothing where the launcher does not ask for it.

        Their parameters are replaced: call this before an optimiser or an average is made of them.

        Raises:
            ValueError: if the launcher names layers that the network does not have.
        """
        if self._sharding is not None and self.shards:
            mesh = distributed.init_device_mesh(self.device.type, (self.world,))
            self._sharded = Sharded(networks, mesh, self._sharding)

    def whole_network(self) -> AbstractContextManager[None]:
        """Inside, forwards without gradient wait for no other process."""
        return nullcontext() if self._sharded is None else self._sharded.whole()

    def collect(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Whole tensors on the main process, from the parts of all; all must call. Others may get nothing."""
        return collect(tensors, keep=self.is_main or not self.shards)

    def prepare_optimizer(self, optimizer: torch.optim.Optimizer) -> Any:
        """The optimiser as accelerate wraps it: it knows the loss scaling of float16."""
        return self._accelerator.prepare_optimizer(optimizer)

    @property
    def loss_scaling(self) -> dict[str, float]:
        """Where the loss scaling of float16 stands; empty for every other precision."""
        scaler = self._accelerator.scaler
        return {} if scaler is None else scaler.state_dict()

    @loss_scaling.setter
    def loss_scaling(self, state: dict[str, float]) -> None:
        if self._accelerator.scaler is not None and state:
            self._accelerator.scaler.load_state_dict(state)

    def autocast(self) -> AbstractContextManager[None]:
        """The mixed precision of the run; does nothing in float32."""
        return self._accelerator.autocast()

    def backward(self, loss: Tensor) -> None:
        """Backward with loss scaling where the precision needs it."""
        self._accelerator.backward(loss)

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum gradients over all processes in place; a parameter without one counts as zero."""
        parameters = list(parameters)
        zeros_where_missing(parameters)
        if self.world == 1 or any(isinstance(parameter, DTensor) for parameter in parameters):
            return  # parts are summed in each backward pass
        flat = self._reduce(torch.cat([p.grad.reshape(-1) for p in parameters if p.grad is not None]))
        offset = 0
        for parameter in parameters:
            count = parameter.numel()
            parameter.grad = flat[offset : offset + count].view_as(parameter).clone()
            offset += count

    def clip_gradients(self, parameters: Iterable[nn.Parameter], max_norm: float) -> float:
        """Unscale, clip the global norm, and return the norm before clipping."""
        norm = self._accelerator.clip_grad_norm_(list(parameters), max_norm)
        assert norm is not None
        return number(norm)

    def meet(self, seconds: float) -> None:
        """Wait for all processes, but not for ever; over gloo, whatever the device, which can say who is missing.

        Raises:
            RuntimeError: naming the processes that did not come within ``seconds``.
        """
        if self.world == 1:
            return
        limit = timedelta(seconds=seconds)
        own: Any = None  # the group of the run, where that is gloo's
        if distributed.get_backend() != "gloo":
            own = distributed.new_group(backend="gloo", timeout=limit)
        try:
            distributed.monitored_barrier(own, timeout=limit, wait_all_ranks=True)
        except RuntimeError as error:
            raise RuntimeError(
                f"not all of {self.world} processes came to the first meeting within {seconds:g} seconds; see what the "
                f"missing ones say, and whether all machines reach the main one: {error}"
            ) from error
        finally:
            if own is not None:
                distributed.destroy_process_group(own)

    def open_store(self, seconds: float) -> Store:
        """A store for texts that all processes share; all must call.

        It lies where the processes first met: with the launcher, which outlives them, or else with the main process.

        Args:
            seconds: the longest wait for an answer.
        """
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = distributed.TCPStore(host, port, None, False, timedelta(seconds=seconds), False)
        return distributed.PrefixStore(f"difalign/{self.agree(secrets.token_hex(8))}", store)

    def free_memory(self) -> None:
        """Give back what the allocator of the device holds, after memory ran out."""
        gc.collect()
        clear_device_cache()

    def barrier(self) -> None:
        """Wait for all processes."""
        self._accelerator.wait_for_everyone()

    def close(self, *, failed: bool = False) -> None:
        """Leave the process group; call once, at the end of the run.

        Processes wait for one another first: one that leaves while another is still in a collective takes it down.
        A process that failed does not wait, since the others may never come.
        """
        if not failed:
            self.barrier()
        self._accelerator.end_training()
        # accelerate keeps precision and process group for the life of the interpreter; a second run, as in a
        # notebook, may want others.
        AcceleratorState._reset_state(reset_partial_state=True)
        gc.collect()  # the group's threads end here: one that still ran while the interpreter shuts down would abort it

    @staticmethod
    def _reduce(tensor: Tensor) -> Tensor:
        result = reduce(tensor, reduction="sum")
        assert isinstance(result, Tensor)
        return result


_BROKEN = ("gloo", "NCCL", "Connection", "connection", "Timed out", "timed out", "Socket", "Broken pipe")


def is_broken_exchange(error: BaseException) -> bool:
    """Whether an error says that processes could not reach one another; gloo raises plain RuntimeErrors."""
    if isinstance(error, distributed.DistError):
        return True
    return type(error) is RuntimeError and any(word in str(error) for word in _BROKEN)
