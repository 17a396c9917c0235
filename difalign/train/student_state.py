"""The state of a student's training between two steps, in one file that is whole or not there."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from difalign.core.errors import ConfigError
from difalign.train.ema import MovingAverage
from difalign.train.state import optimizer_tensors, parameter_names, restore_optimizer

STATE_FILE = "training.safetensors"


@dataclass(frozen=True, slots=True)
class StudentState:
    """What training needs to go on as if it had never stopped."""

    step: int
    network: dict[str, Tensor]  # parameters and buffers
    optimizer: dict[str, Tensor]
    average: dict[str, Tensor]  # empty without a moving average
    errors: Tensor  # of the levels, see the trainer

    @classmethod
    def of(
        cls,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        average: MovingAverage | None,
        *,
        errors: Tensor,
        step: int,
    ) -> Self:
        """The state as it is; tensors are not copied."""
        names = parameter_names(network, list(network.parameters()))
        return cls(
            step=step,
            network=dict(network.state_dict()),
            optimizer=optimizer_tensors(optimizer, names),
            average={} if average is None else dict(zip(names, average.values, strict=True)),
            errors=errors,
        )

    def restore(self, network: nn.Module, optimizer: torch.optim.Optimizer, average: MovingAverage | None) -> None:
        """Give everything back to what it was taken from."""
        names = parameter_names(network, list(network.parameters()))
        network.load_state_dict(self.network)
        restore_optimizer(optimizer, names, self.optimizer)
        if average is not None:
            average.restore([self.average[name] for name in names], self.step)


def store(folder: Path, identity: str, state: StudentState) -> None:
    """Write the state in the place of the one before, whole or not at all."""
    from safetensors.torch import save_file

    parts = {"network": state.network, "optimizer": state.optimizer, "average": state.average}
    tensors = {f"{part}/{name}": tensor for part, held in parts.items() for name, tensor in held.items()}
    tensors["errors"] = state.errors
    aside = folder / f".{STATE_FILE}.writing"
    save_file(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
        aside,
        metadata={"step": json.dumps(state.step), "identity": identity},
    )
    aside.replace(folder / STATE_FILE)


def stored(folder: Path, identity: str) -> StudentState | None:
    """What was stored last; None if nothing was.

    Raises:
        ConfigError: if it is of another training, or damaged.
    """
    from safetensors import SafetensorError, safe_open

    path = folder / STATE_FILE
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            said = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    except SafetensorError as error:
        raise ConfigError(f"{path}: is no whole state of training ({error}); remove it to begin anew") from error
    if said.get("identity") != identity:
        raise ConfigError(f"{path}: was begun with other data, settings, teacher or network; begin anew elsewhere")
    held = {
        part: {name.partition("/")[2]: tensor for name, tensor in tensors.items() if name.startswith(f"{part}/")}
        for part in ("network", "optimizer", "average")
    }
    return StudentState(step=json.loads(said["step"]), errors=tensors["errors"], **held)


def forget(folder: Path) -> None:
    """Remove what is stored."""
    (folder / STATE_FILE).unlink(missing_ok=True)
