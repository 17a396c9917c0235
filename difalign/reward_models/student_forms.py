"""Students that add little to a copy of their teacher's network: adapters, or a modulation by the noise.

Both begin as the teacher to the last bit. LoRA (arXiv 2106.09685) adds low-rank terms to linear layers and trains these
alone, so that a level is a small file. Modulation shifts and scales what every layer normalisation puts out by a
function of sigma, as adaLN does (arXiv 2212.09748), so that one network can read all levels.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, final

import torch
from torch import Tensor, nn

from difalign.core.protocols import NetworkReward
from difalign.core.rng import generator
from difalign.core.types import Metadata, RewardOutput
from difalign.reward_models.networks import in_training

_MODULATION = "noise_modulation"  # its name below the first normalisation: a sequence would call it, if it held it
_ADAPTER = "student"
_KEPT = 32  # levels whose readings of prompts are kept


@dataclass(frozen=True, slots=True)
class LoraForm:
    """Adapters beside linear layers, a set a level."""

    rank: int = 8
    alpha: int = 16
    targets: tuple[str, ...] = ()  # suffixes of the names of linear layers; empty = all
    seed: int = 0
    kind: str = "lora"
    one_for_all: bool = False

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha < 1:
            raise ValueError(f"rank = {self.rank}, alpha = {self.alpha}: both must be at least 1")

    def to_json(self) -> dict[str, Any]:
        """See ``StudentForm``."""
        return {"rank": self.rank, "alpha": self.alpha, "targets": list(self.targets), "seed": self.seed}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """What ``to_json`` gave."""
        return cls(**{**values, "targets": tuple(values["targets"])})

    def adapt(self, network: nn.Module) -> None:
        """Attach adapters that change nothing: A is N(0, 1 / rank^2) by (seed, layer), B is 0.

        Raises:
            ValueError: if no linear layer is named by the targets.
        """
        from peft import LoraConfig, inject_adapter_in_model
        from peft.tuners.lora import LoraLayer

        names = _linear_layers(network, self.targets)
        config = LoraConfig(r=self.rank, lora_alpha=self.alpha, target_modules=names)
        with torch.random.fork_rng(devices=[]):  # what peft draws is drawn again below
            inject_adapter_in_model(config, network, adapter_name=_ADAPTER)
        for name, layer in network.named_modules():
            if isinstance(layer, LoraLayer):
                layers: Any = layer
                down, up = layers.lora_A[_ADAPTER].float().weight, layers.lora_B[_ADAPTER].float().weight
                with torch.no_grad():
                    down.copy_(torch.randn(down.shape, generator=generator("lora", self.seed, name)) / self.rank)
                    up.zero_()

    def reward(self, teacher: NetworkReward, network: nn.Module) -> NetworkReward:
        """See ``StudentForm``."""
        return teacher.with_model(network)

    def trainable(self, network: nn.Module) -> list[nn.Parameter]:
        """The adapters."""
        network.requires_grad_(False)
        found = [parameter for name, parameter in network.named_parameters() if ".lora_" in name]
        for parameter in found:
            parameter.requires_grad_(True)
        return found


@dataclass(frozen=True, slots=True)
class ModulatedForm:
    """Layer normalisations that are told sigma; one network for all levels."""

    frequencies: int = 16
    hidden: int = 64
    whole: bool = True  # train the teacher's own weights as well, and not the modulation alone
    seed: int = 0
    kind: str = "modulated"
    one_for_all: bool = True

    def __post_init__(self) -> None:
        if self.frequencies < 1 or self.hidden < 1:
            raise ValueError(f"frequencies = {self.frequencies}, hidden = {self.hidden}: both must be at least 1")

    def to_json(self) -> dict[str, Any]:
        """See ``StudentForm``."""
        return {"frequencies": self.frequencies, "hidden": self.hidden, "whole": self.whole, "seed": self.seed}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """What ``to_json`` gave."""
        return cls(**values)

    def adapt(self, network: nn.Module) -> None:
        """Hang the modulation into the network; it changes nothing yet.

        Raises:
            ValueError: if there is no layer normalisation.
        """
        norms = [module for module in network.modules() if isinstance(module, nn.LayerNorm)]
        if not norms:
            raise ValueError(f"{type(network).__name__} has no layer normalisation to modulate; use another kind")
        widths = [norm.normalized_shape[-1] for norm in norms]
        modulation = NoiseModulation(widths, frequencies=self.frequencies, hidden=self.hidden, seed=self.seed)
        device = next(network.parameters()).device
        norms[0].add_module(_MODULATION, modulation.to(device))
        for index, norm in enumerate(norms):
            norm.register_forward_hook(modulation.hook(index))

    def reward(self, teacher: NetworkReward, network: nn.Module) -> NetworkReward:
        """See ``StudentForm``."""
        return ModulatedReward(teacher, network)

    def trainable(self, network: nn.Module) -> list[nn.Parameter]:
        """All, or the modulation."""
        network.requires_grad_(self.whole)
        _modulation(network).requires_grad_(True)
        return [parameter for parameter in network.parameters() if parameter.requires_grad]


@final
class NoiseModulation(nn.Module):
    """``(1 + scale(sigma)) * y + shift(sigma)`` for every normalisation's output y; both are 0 at the start."""

    def __init__(self, widths: Sequence[int], *, frequencies: int, hidden: int, seed: int) -> None:
        super().__init__()
        source = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            self.features = nn.Linear(2 * frequencies, hidden)
            self.layers = nn.ModuleList(nn.Linear(hidden, 2 * width) for width in widths)
        self.periods = torch.logspace(2, -4, frequencies, base=2.0)
        self.sigma: float | None = None  # of what the network is being shown; None = as its teacher
        with torch.no_grad():
            nn.init.xavier_uniform_(self.features.weight, generator=source)
            nn.init.zeros_(self.features.bias)
            for parameter in self.layers.parameters():
                parameter.zero_()

    def hook(self, index: int) -> Any:
        """What a normalisation's output goes through."""

        def modulated(_: nn.Module, __: object, output: Tensor) -> Tensor:
            if self.sigma is None:
                return output
            angles = (2 * math.pi * self.sigma / self.periods).to(self.features.weight)
            told = nn.functional.silu(self.features(torch.cat([angles.cos(), angles.sin()])))
            shift, scale = self.layers[index](told).chunk(2)
            return (output * (1 + scale) + shift).to(output.dtype)

        return modulated


@final
class ModulatedReward:
    """A teacher's reward by a modulated network, which is told the sigma of what it is shown.

    What a prompt is read as depends on sigma too, so that readings are kept by level.
    """

    def __init__(self, teacher: NetworkReward, network: nn.Module) -> None:
        self.name = teacher.name
        self.differentiable = teacher.differentiable
        self.model = teacher.with_model(network).model
        self._teacher = teacher
        self._levels: OrderedDict[float | None, NetworkReward] = OrderedDict()

    def with_model(self, model: nn.Module) -> ModulatedReward:
        """The same reward by another network of the same make, which is frozen."""
        return ModulatedReward(self._teacher, model)

    def to(self, device: str | torch.device) -> None:
        """Move the network."""
        self.model.to(device)

    def score(
        self, media: Tensor, prompts: Sequence[str], *, metadata: Metadata | None = None, sigma: float | None = None
    ) -> RewardOutput:
        """As the teacher scores, by a network that knows the noise.

        Raises:
            ValueError: what the teacher raises.
        """
        modulation = _modulation(self.model)
        modulation.sigma = sigma
        try:
            return self._at(sigma).score(media, prompts, metadata=metadata, sigma=sigma)
        finally:
            modulation.sigma = None

    def _at(self, sigma: float | None) -> NetworkReward:
        if sigma not in self._levels:
            wanted = [(p, p.requires_grad) for p in self.model.parameters()]
            self._levels[sigma] = self._teacher.with_model(self.model)
            for parameter, flag in wanted:  # making a reward freezes its network
                parameter.requires_grad_(flag)
            if len(self._levels) > _KEPT:
                self._levels.popitem(last=False)
        if not in_training(self.model):
            self._levels.move_to_end(sigma)
        return self._levels[sigma]


def _modulation(network: nn.Module) -> NoiseModulation:
    return next(module for module in network.modules() if isinstance(module, NoiseModulation))


def _linear_layers(network: nn.Module, targets: Sequence[str]) -> list[str]:
    """Full names of the linear layers that adapters can sit on; torch's own attention reads past its last one."""
    inside = {f"{name}.out_proj" for name, part in network.named_modules() if isinstance(part, nn.MultiheadAttention)}
    parts = [(name, part) for name, part in network.named_modules() if name and name not in inside]
    linear = [name for name, part in parts if isinstance(part, nn.Linear)]
    wanted = [name for name in linear if not targets or any(f".{name}".endswith(f".{target}") for target in targets)]
    if not wanted:
        raise ValueError(
            f"targets = {list(targets)}: name no linear layer; there are {', '.join(linear[:6]) or 'none'}"
        )
    return wanted
