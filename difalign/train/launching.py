"""What ``accelerate launch`` and its configuration file ask for, as far as it is honoured here; the rest is refused."""

from __future__ import annotations

import os

from difalign.core.errors import ConfigError
from difalign.train.sharding import Sharding


def requested_sharding() -> Sharding | None:
    """How the launcher wants the weights taken apart, None for whole weights on every process.

    Raises:
        ConfigError: if it asks for what is not supported; ignoring it would train something else than was asked for.
    """
    if _is_set("ACCELERATE_USE_DEEPSPEED"):
        raise ConfigError(
            "distributed_type = DEEPSPEED: is not supported; use configs/accelerate/zero2.yaml or zero3.yaml, which "
            "share weights, gradients and moments out in the same way by torch alone"
        )
    if not _is_set("ACCELERATE_USE_FSDP"):
        return None
    version = os.environ.get("FSDP_VERSION", "1")
    if version != "2":
        raise ConfigError(f"fsdp_version = {version}: is not supported; use 2, as in configs/accelerate/fsdp2.yaml")
    for key, remedy in _NOT_HONOURED.items():
        if _is_set(key.upper()):
            raise ConfigError(f"{key} = true: is not supported; {remedy}")
    layers = os.environ.get("FSDP_TRANSFORMER_CLS_TO_WRAP", "")
    return Sharding(
        reshard_after_forward=_is_set("FSDP_RESHARD_AFTER_FORWARD", default="true"),
        layers=tuple(name.strip() for name in layers.split(",") if name.strip()) or None,
    )


_NOT_HONOURED = {
    "fsdp_offload_params": "set it to false; set training.gradient_checkpointing=true or use more processes instead",
    "fsdp_activation_checkpointing": "set it to false, and training.gradient_checkpointing=true",
}


def _is_set(name: str, *, default: str = "false") -> bool:
    return os.environ.get(name, default).lower() in {"1", "true", "yes"}
