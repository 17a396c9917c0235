"""The state of training between two rollouts, and its files: tensors in safetensors, numbers in JSON, nothing pickled.

There is no generator among it. All noise and every order of prompts and rows is keyed by (run seed, prompt, rollout,
update), see ``difalign.core.rng``; the counters are the whole random state. Nor does it know how many processes there
were: all hold the same weights and moments, or parts that are put together first, so any number can go on.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from difalign.core.errors import ConfigError
from difalign.train.checkpoint import Write
from difalign.train.sharding import like

WEIGHTS_FILE = "weights.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
AVERAGE_FILE = "average.safetensors"
TRAINER_FILE = "trainer.json"


@dataclass(frozen=True, slots=True)
class TrainerState:
    """What a trainer needs to go on as if it had never stopped. Tensors are named by their parameter."""

    weights: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]  # "PARAMETER:MOMENT", such as "to_q.weight:exp_avg"
    average: Mapping[str, Tensor]  # empty without a moving average
    counters: Mapping[str, int]
    loss_scaling: Mapping[str, float] = field(default_factory=dict)  # of float16; empty otherwise
    prompt_rewards: Sequence[Mapping[str, Sequence[float]]] = ()  # of every prompt; one mapping a stage, oldest first

    reward_moments: Mapping[str, Sequence[float]] = field(default_factory=dict)  # of rewards in running units

    def files(self) -> dict[str, Write]:
        """What writes each file of a checkpoint, by name."""
        numbers = {
            "counters": dict(self.counters),
            "loss_scaling": dict(self.loss_scaling),
            "prompt_rewards": [{name: list(kept) for name, kept in stage.items()} for stage in self.prompt_rewards],
            "reward_moments": {name: list(moments) for name, moments in self.reward_moments.items()},
        }
        return {
            WEIGHTS_FILE: partial(_write_tensors, self.weights),
            OPTIMIZER_FILE: partial(_write_tensors, self.optimizer),
            AVERAGE_FILE: partial(_write_tensors, self.average),
            TRAINER_FILE: partial(write_json, numbers),
        }


def read_trainer_state(folder: Path) -> TrainerState:
    """What ``TrainerState.files`` wrote; on the CPU."""
    from safetensors.torch import load_file

    numbers = json.loads((folder / TRAINER_FILE).read_text(encoding="utf-8"))
    return TrainerState(
        weights=load_file(folder / WEIGHTS_FILE),
        optimizer=load_file(folder / OPTIMIZER_FILE),
        average=load_file(folder / AVERAGE_FILE),
        counters=numbers["counters"],
        loss_scaling=numbers["loss_scaling"],
        prompt_rewards=numbers["prompt_rewards"],
        reward_moments=numbers.get("reward_moments", {}),
    )


def write_json(value: Mapping[str, Any], path: Path) -> None:
    """Write plain containers as JSON; numbers read back to the last bit."""
    path.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def parameter_names(network: nn.Module, parameters: Sequence[nn.Parameter]) -> tuple[str, ...]:
    """The name that ``network`` has for each parameter; its position for one that lies outside."""
    known = {id(parameter): name for name, parameter in network.named_parameters()}
    return tuple(known.get(id(parameter), str(index)) for index, parameter in enumerate(parameters))


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: Sequence[str]) -> dict[str, Tensor]:
    """The moments and step counts of every parameter that was ever stepped."""
    state = optimizer.state_dict()["state"]
    return {f"{names[index]}:{key}": value for index, entry in state.items() for key, value in entry.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, names: Sequence[str], tensors: Mapping[str, Tensor]) -> None:
    """Give back what ``optimizer_tensors`` took; learning rate and the like stay as they are configured."""
    position = {name: index for index, name in enumerate(names)}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for full_name, tensor in tensors.items():
        name, _, key = full_name.rpartition(":")
        parameter = parameters[position[name]]
        # A clone: the optimiser keeps and changes what it is given.
        mine = like(tensor, parameter) if tensor.shape == parameter.shape else tensor
        state.setdefault(position[name], {})[key] = mine.clone()
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


@torch.no_grad()
def restore_parameters(parameters: Sequence[nn.Parameter], names: Sequence[str], tensors: Mapping[str, Tensor]) -> None:
    """Copy the named tensors into the parameters.

    Raises:
        ConfigError: if the names or a shape are not those of the parameters.
    """
    shapes = {name: tuple(parameter.shape) for name, parameter in zip(names, parameters, strict=True)}
    check_fit(shapes, tensors)
    for name, parameter in zip(names, parameters, strict=True):
        parameter.copy_(like(tensors[name], parameter))


def check_fit(shapes: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors that belong to another network, or to other adapters.

    Raises:
        ConfigError: naming the first that is missing, left over, or of another shape.
    """
    stored = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if misfit := _first_misfit(shapes, stored):
        raise ConfigError(
            f"the checkpoint does not fit what is trained: {misfit}; resume with the pipeline, training.trainable and "
            "training.lora that it was made with"
        )


def _first_misfit(shapes: Mapping[str, tuple[int, ...]], stored: Mapping[str, tuple[int, ...]]) -> str | None:
    for name in _both(shapes, stored):
        if name not in stored:
            return f"it has no {name!r}"
        if name not in shapes:
            return f"nothing is called {name!r}"
        if shapes[name] != stored[name]:
            return f"{name!r} is {list(stored[name])} there and {list(shapes[name])} here"
    return None


def _both(first: Iterable[str], second: Iterable[str]) -> list[str]:
    return list(dict.fromkeys((*first, *second)))


def _write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, path)
    except SafetensorError as error:  # how it reports a full disk
        raise OSError(f"{path.name} could not be written: {error}") from error
