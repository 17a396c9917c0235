"""Whether the weights that sample are the weights that were trained: a checksum of their bits, and where they lie."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn

from difalign.train.sharding import local

_WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # bytes of an element -> integers of that size
_MODULUS = 1 << 64


@torch.no_grad()
def fingerprint(parameters: Sequence[nn.Parameter]) -> int:
    """A number that changes with any bit of any weight, and when two tensors are exchanged.

    The bits of each tensor are added up as integers, exactly and in any order, and the sums weighed by position. Of a
    weight that is spread over processes, this process's part counts.
    """
    sums = [_bits(parameter).sum(dtype=torch.int64) for parameter in parameters]
    if not sums:
        return 0
    return sum((2 * place + 1) * value for place, value in enumerate(torch.stack(sums).tolist())) % _MODULUS


def _bits(parameter: Tensor) -> Tensor:
    values = local(parameter.detach())
    return values.view(_WORDS[values.element_size()])


@final
class WeightSeal:
    """Remembers the trained weights between two phases of a run; ``check`` says whether they are still the same."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._parameters = list(parameters)
        self._seal: int | None = None

    @property
    def value(self) -> int | None:
        """The fingerprint that is remembered."""
        return self._seal

    def close(self) -> int:
        """Remember the weights as they are now; returns their fingerprint."""
        self._seal = fingerprint(self._parameters)
        return self._seal

    def check(self, network: nn.Module, current: Sequence[nn.Parameter], *, phase: str) -> None:
        """Check that what predicts is what is trained, and that it was left alone since ``close``.

        Args:
            network: the denoiser that predicts.
            current: the parameters that the pipeline says are trained.
            phase: what comes next, for the message.

        Raises:
            RuntimeError: saying what differs.
        """
        known = {id(parameter) for parameter in network.parameters()}
        mine, theirs = ([id(parameter) for parameter in listed] for listed in (self._parameters, current))
        if mine != theirs or not known.issuperset(mine):
            strangers = len(set(mine) - known)
            raise RuntimeError(
                f"before {phase}: the optimiser's {len(mine)} weights are not those of the network that samples "
                f"({strangers} of them are not in it, {len(set(theirs) - set(mine))} of its own are not trained); "
                "wrap or replace the network before the trainer is made, so that both share their parameters"
            )
        if self._seal is not None and (found := fingerprint(self._parameters)) != self._seal:
            raise RuntimeError(
                f"before {phase}: the weights are not those that training left (checksum {found:016x}, was "
                f"{self._seal:016x}); something outside of training wrote to them: look at reward models, callbacks "
                "and adapters that share the network"
            )
