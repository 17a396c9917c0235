"""What a student that starts as a copy of its teacher consists of, and which part of it is trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn

from difalign.core.protocols import NetworkReward


class StudentForm(Protocol):
    """A way to make a student of a copy of the teacher's network; at the start it scores as the teacher does."""

    @property
    def kind(self) -> str:
        """Its name in the bank."""
        ...

    @property
    def one_for_all(self) -> bool:
        """Whether the network after the last level is the student of all levels."""
        ...

    def to_json(self) -> Mapping[str, Any] | None:
        """Plain values that make it again; None = there are none."""
        ...

    def adapt(self, network: nn.Module) -> None:
        """Add what it adds to a copy of the teacher's network."""
        ...

    def reward(self, teacher: NetworkReward, network: nn.Module) -> NetworkReward:
        """The teacher's reward by the adapted network, frozen."""
        ...

    def trainable(self, network: nn.Module) -> list[nn.Parameter]:
        """The parameters of the adapted network that are trained; these alone take gradient from here on."""
        ...


@dataclass(frozen=True, slots=True)
class FullForm:
    """The copy itself, all of whose weights are trained (TTSnap, arXiv 2511.22242, released code)."""

    kind: str = "full"
    one_for_all: bool = False

    def to_json(self) -> None:
        """See ``StudentForm``."""

    def adapt(self, network: nn.Module) -> None:
        """Nothing is added."""

    def reward(self, teacher: NetworkReward, network: nn.Module) -> NetworkReward:
        """See ``StudentForm``."""
        return teacher.with_model(network)

    def trainable(self, network: nn.Module) -> list[nn.Parameter]:
        """All."""
        return list(network.requires_grad_(True).parameters())
