"""Low-rank adapters on any network: attach, switch off, save for diffusers, load.

LoRA: Hu et al., arXiv 2106.09685; W' = W + (alpha / rank) B A, with B = 0 at the start.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from difalign.core.rng import generator

if TYPE_CHECKING:
    from peft import LoraConfig

WEIGHT_FILE = "pytorch_lora_weights.safetensors"  # the name that diffusers' load_lora_weights looks for
_METADATA_KEY = "lora_adapter_metadata"  # where diffusers keeps the peft configuration, alpha among it
_PORTABLE = ("r", "lora_alpha", "target_modules", "rank_pattern", "alpha_pattern", "use_dora", "lora_bias")
_ADAPTER = "default"


def attach(network: nn.Module, *, rank: int, alpha: int, targets: Sequence[str], seed: int) -> None:
    """Add trainable float32 adapters to every linear layer and convolution named by ``targets`` and freeze all else.

    A target is a dotted suffix of module names, such as ``attn.to_q``. A starts as N(0, 1/rank^2) (peft's
    "gaussian"), drawn on the CPU from (seed, module name), so that a layer starts the same on any device, in any
    dtype and whatever else is adapted; B starts at 0. The global generator is left as it was.

    Raises:
        ValueError: if rank or alpha is below 1, a target matches no layer, or adapters are already attached.
    """
    from peft import LoraConfig

    if rank < 1 or alpha < 1:
        raise ValueError(f"LoRA needs rank >= 1 and alpha >= 1, got rank={rank}, alpha={alpha}")
    _refuse_second(network)
    _check_targets(network, targets)
    _inject(network, LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(targets), init_lora_weights="gaussian"))
    with torch.no_grad():
        for name, layer in _lora_layers(network).items():
            down, up = layer.lora_A[_ADAPTER].weight, layer.lora_B[_ADAPTER].weight
            down.copy_(torch.randn(down.shape, generator=generator("lora", seed, name)) / rank)
            up.zero_()


def is_attached(network: nn.Module) -> bool:
    """Whether the network carries adapters."""
    return any(True for _ in _lora_layers(network))


@contextmanager
def disabled(network: nn.Module) -> Iterator[None]:
    """Inside, the network computes as without adapters, bit for bit.

    Which parameters take gradient is restored on leaving: peft's own switch turns gradients off with the adapters
    and turns them on again for every adapter, frozen or not. May be nested.
    """
    layers = [layer for layer in _lora_layers(network).values() if not layer.disable_adapters]
    wants_gradient = [(parameter, parameter.requires_grad) for layer in layers for parameter in layer.parameters()]
    try:
        for layer in layers:
            layer.enable_adapters(False)
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
        for parameter, flag in wants_gradient:
            parameter.requires_grad_(flag)


def save(network: nn.Module, folder: Path, *, prefix: str) -> Path:
    """Write the adapters as ``pytorch_lora_weights.safetensors`` and return the file.

    Plain diffusers reads it with ``load_lora_weights(folder)``. The configuration goes into the header: without
    it a reader takes alpha for rank and scales the adapters wrongly.

    Args:
        prefix: the name of the network among the pipeline's components, such as ``transformer``.

    Raises:
        ValueError: if there are no adapters, or ``folder`` is a file.
    """
    from diffusers.loaders.lora_base import LoraBaseMixin

    if not is_attached(network):
        raise ValueError("there are no LoRA adapters to save: call attach_lora first, or save the whole network")
    if folder.is_file():
        raise ValueError(f"{folder} is a file: give a folder for {WEIGHT_FILE}")
    config = _config(network).to_dict()
    metadata = {f"{prefix}.{key}": _plain(config[key]) for key in _PORTABLE}
    weights = {f"{prefix}.{name}": value.cpu().contiguous() for name, value in _state(network).items()}
    LoraBaseMixin.write_lora_layers(
        state_dict=weights,
        save_directory=str(folder),
        is_main_process=True,
        weight_name=WEIGHT_FILE,
        save_function=None,  # type: ignore[arg-type]  # diffusers' own default, safetensors with the header
        safe_serialization=True,
        lora_adapter_metadata=metadata,
    )
    return folder / WEIGHT_FILE


def load(network: nn.Module, folder: Path, *, prefix: str) -> None:
    """Read adapters that ``save`` or diffusers wrote, exactly, and leave them trainable in float32.

    Adapters that are attached already are overwritten if they have the same configuration. A file without a
    configuration in its header is read as diffusers reads it: alpha equals rank.

    Raises:
        ValueError: if the file is missing, holds nothing for ``prefix``, or does not fit the network.
    """
    from peft import set_peft_model_state_dict

    path = folder / WEIGHT_FILE
    config, weights = _read(path, prefix)
    if misfits := _misfits(network, weights):
        raise ValueError(
            f"{path} does not fit this network: {len(misfits)} tensors differ, the first is {misfits[0]!r}; "
            "load it into the model it was trained on"
        )
    if not is_attached(network):
        _inject(network, config, weights)
    elif (mine := _geometry(_config(network))) != (theirs := _geometry(config)):
        raise ValueError(
            f"{path} has {theirs}, but the attached adapters have {mine}: "
            "load into a network without adapters, or attach the same ones"
        )
    set_peft_model_state_dict(network, weights, adapter_name=_ADAPTER)


def _misfits(network: nn.Module, weights: dict[str, Tensor]) -> list[str]:
    """The tensors of a file that have no linear layer of their size to sit on."""
    linear = {n.removesuffix(".base_layer"): m for n, m in network.named_modules() if isinstance(m, nn.Linear)}
    side = {"lora_A.weight": (1, "in_features"), "lora_B.weight": (0, "out_features")}
    found = []
    for name, value in weights.items():
        layer, _, part = name.partition(".lora_")
        axis, features = side.get(f"lora_{part}", (0, ""))
        if value.shape[axis] != getattr(linear.get(layer), features, None):
            found.append(name)
    return sorted(found)


def _refuse_second(network: nn.Module) -> None:
    if is_attached(network):
        raise ValueError("LoRA adapters are already attached: use load_lora to overwrite them, or a fresh pipeline")


def _inject(network: nn.Module, config: LoraConfig, weights: dict[str, Tensor] | None = None) -> None:
    """Wrap the target layers; adapters become float32 and are all that takes gradient."""
    from peft import inject_adapter_in_model

    device = next(network.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        inject_adapter_in_model(config, network, adapter_name=_ADAPTER, state_dict=weights)
    for layer in _lora_layers(network).values():
        for part in (layer.lora_A, layer.lora_B):
            part.to(torch.float32)  # peft gives adapters the dtype of the layer they sit on
    if hasattr(network, "_hf_peft_config_loaded"):
        network._hf_peft_config_loaded = True  # type: ignore[assignment]  # diffusers' own LoRA functions ask it


def _lora_layers(network: nn.Module) -> dict[str, Any]:
    """Module name -> the peft LoraLayer there; typed Any, since peft mixes it into nn.Module only in subclasses."""
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in network.named_modules() if isinstance(module, LoraLayer)}


def _config(network: nn.Module) -> LoraConfig:
    """The configuration peft left on the network."""
    return network.peft_config[_ADAPTER]  # type: ignore[index, return-value]


def _state(network: nn.Module) -> dict[str, Tensor]:
    """The adapter tensors under the names diffusers stores, without prefix."""
    from peft import get_peft_model_state_dict

    return get_peft_model_state_dict(network, adapter_name=_ADAPTER, save_embedding_layers=False)


def _geometry(config: LoraConfig) -> dict[str, Any]:
    """What must agree for weights to be exchangeable."""
    values = config.to_dict()
    return {key: _plain(values[key]) for key in _PORTABLE}


def _plain(value: Any) -> Any:
    """A set as a sorted list, so that it can be compared and written as JSON."""
    return sorted(value) if isinstance(value, set) else value


def _read(path: Path, prefix: str) -> tuple[LoraConfig, dict[str, Tensor]]:
    """The configuration and the tensors of a file, prefix removed."""
    from peft import LoraConfig
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise ValueError(f"no {path.name} in {path.parent}: give the folder that a training run or save_lora wrote")
    try:
        with safe_open(str(path), framework="pt") as file:
            header = file.metadata() or {}
            own = [name for name in file.keys() if name.startswith(f"{prefix}.")]  # noqa: SIM118  # not a dict
            weights = {name.removeprefix(f"{prefix}."): file.get_tensor(name) for name in own}
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}): copy it again") from error
    if not weights:
        raise ValueError(f"{path} holds no LoRA weights for {prefix!r}: it was made for another kind of pipeline")
    if _METADATA_KEY not in header:
        return _infer_config(weights, path), weights
    stored = {key.removeprefix(f"{prefix}."): value for key, value in json.loads(header[_METADATA_KEY]).items()}
    return LoraConfig(**stored), weights


def _infer_config(weights: dict[str, Tensor], path: Path) -> LoraConfig:
    """The configuration of a file that carries none: rank from the shapes, alpha = rank."""
    from peft import LoraConfig

    ranks = {value.shape[0] for name, value in weights.items() if name.endswith(".lora_A.weight")}
    if len(ranks) != 1:
        raise ValueError(f"{path} has no configuration in its header and ranks {sorted(ranks)}: one rank is needed")
    rank = ranks.pop()
    return LoraConfig(r=rank, lora_alpha=rank, target_modules=sorted({name.split(".lora_")[0] for name in weights}))


def _check_targets(network: nn.Module, targets: Sequence[str]) -> None:
    """Every target must be the suffix of the name of some layer that can be adapted."""
    names = [name for name, module in network.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    unknown = [t for t in targets if not any(name == t or name.endswith(f".{t}") for name in names)]
    if unknown or not targets:
        known = sorted({re.sub(r"^.*s\.\d+\.", "", name) for name in names})  # within blocks, resnets and the like
        raise ValueError(
            f"LoRA targets {unknown or list(targets)} match no linear or convolution layer; known: {', '.join(known)}"
        )
