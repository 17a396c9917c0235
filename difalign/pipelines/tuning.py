"""What of a network is trained, and the policy it started as; the same for every family."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor, nn

from difalign.pipelines import lora

if TYPE_CHECKING:
    from diffusers.models.modeling_utils import ModelMixin


@final
class Tuning:
    """One network under training: by adapters, as a whole, or not at all.

    Args:
        network: the denoiser.
        component: its name in the diffusers pipeline and in LoRA files, such as ``transformer``.
        lora_targets: the layers that adapters go to unless told otherwise.
    """

    def __init__(self, network: ModelMixin, *, component: str, lora_targets: Sequence[str]) -> None:
        self.network = network
        self._architecture: Any = type(network)  # sharding changes the class of a network in place
        self._component = component
        self._lora_targets = tuple(lora_targets)
        self._original: nn.Module | None = None  # a frozen copy, kept when the whole network is trained
        self._in_reference = False

    def attach_lora(self, *, rank: int, alpha: int, targets: Sequence[str] | None = None, seed: int) -> None:
        """Add trainable adapters to the network, which change nothing yet; see ``lora.attach``."""
        chosen = self._lora_targets if targets is None else targets
        lora.attach(self.network, rank=rank, alpha=alpha, targets=chosen, seed=seed)

    def train_all(self, *, keep_reference: bool = True) -> None:
        """Make every parameter trainable; keep a frozen copy of the network as it is now unless told not to.

        The copy costs the network's memory once more; a run without a KL term can do without.

        Raises:
            ValueError: if adapters are attached.
        """
        if lora.is_attached(self.network):
            raise ValueError("LoRA adapters are attached: train them or the whole network, not both")
        if keep_reference and self._original is None:
            self._original = copy.deepcopy(self.network).requires_grad_(False)
        self.network.requires_grad_(True)

    def networks(self) -> tuple[nn.Module, ...]:
        """The network under training, and the kept copy if there is one."""
        return (self.network,) if self._original is None else (self.network, self._original)

    def trainable_parameters(self) -> list[nn.Parameter]:
        """The parameters that take gradient, in the network's order."""
        return [parameter for parameter in self.network.parameters() if parameter.requires_grad]

    def policy(self, current: nn.Module) -> nn.Module:
        """The module to call: ``current``, or inside ``reference`` the kept copy if there is one."""
        return self._original if self._in_reference and self._original is not None else current

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Inside, the policy is the one before training: adapters off, or the kept copy. May be nested.

        Raises:
            ValueError: if the whole network is trained and no copy was kept.
        """
        adapted = lora.is_attached(self.network)
        if not adapted and self._original is None and self.trainable_parameters():
            raise ValueError("no reference policy was kept: call train_all(keep_reference=True)")
        outer, self._in_reference = self._in_reference, True
        try:
            with lora.disabled(self.network):
                yield
        finally:
            self._in_reference = outer

    def disable_adapters(self) -> AbstractContextManager[None]:
        """Inside, the network computes without adapters, as the base does bit for bit."""
        return lora.disabled(self.network)

    def save_lora(self, folder: str | Path) -> Path:
        """Write ``pytorch_lora_weights.safetensors``, which ``pipe.load_lora_weights(folder)`` reads."""
        return lora.save(self.network, Path(folder), prefix=self._component)

    def load_lora(self, folder: str | Path) -> None:
        """Read adapters exactly and leave them trainable; see ``lora.load``."""
        lora.load(self.network, Path(folder), prefix=self._component)

    def save_network(self, folder: str | Path, *, weights: Mapping[str, Tensor] | None = None) -> None:
        """Write the whole network as a diffusers model folder.

        Args:
            folder: is made.
            weights: the state of the network, where that holds but a part of each tensor; None takes its own.

        Raises:
            ValueError: if adapters are attached, which such a folder cannot hold.
        """
        if lora.is_attached(self.network):
            raise ValueError("LoRA adapters are attached: use save_lora")
        network = self.network if weights is None else self._with_weights(weights)
        network.save_pretrained(str(folder))

    def load_network(self, folder: str | Path) -> None:
        """Read weights that ``save_network`` wrote into this network, in place; the kept copy stays as it is.

        Raises:
            ValueError: if the folder does not exist or its weights do not fit.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise ValueError(f"no network folder {folder}: give the one that save_network wrote")
        stored = self._architecture.from_pretrained(str(folder), dtype=self.network.dtype)
        try:
            self.network.load_state_dict(stored.state_dict())
        except RuntimeError as error:
            raise ValueError(f"{folder} holds another network than this pipeline's: {error}") from error

    def reread(self, diffusers_pipeline: Any, folder: str | Path) -> tuple[Any, Tuning]:
        """A pipeline that has read what ``save_lora`` or ``save_network`` wrote, through diffusers; and its tuning.

        Its network is a fresh one; the frozen weights below adapters, and all other components, are shared with
        ``diffusers_pipeline``, so that next to no memory is taken when adapters are trained.
        """
        reader = copy.copy(diffusers_pipeline)
        if lora.is_attached(self.network):
            setattr(reader, self._component, self._without_adapters())
            with _only_errors():
                reader.load_lora_weights(str(folder))
        else:
            stored = self._architecture.from_pretrained(str(folder), dtype=self.network.dtype)
            setattr(reader, self._component, stored.to(self.network.device))
        network = getattr(reader, self._component).requires_grad_(False).eval()
        return reader, Tuning(network, component=self._component, lora_targets=self._lora_targets)

    def _without_adapters(self) -> ModelMixin:
        """A fresh network on the same frozen weights."""
        with torch.device("meta"):
            fresh = type(self.network).from_config(self.network.config)  # type: ignore[attr-defined]
        own = {name: value for name, value in self.network.state_dict().items() if ".lora_" not in name}
        fresh.load_state_dict({name.replace(".base_layer.", "."): value for name, value in own.items()}, assign=True)
        for name, buffer in self.network.named_buffers():  # those that no state dict holds
            owner, _, leaf = name.rpartition(".")
            fresh.get_submodule(owner.removesuffix(".base_layer"))._buffers[leaf] = buffer
        for (
            name,
            module,
        ) in self.network.named_modules():  # nor what is no buffer, as Qwen-Image's positions
            plain = {key: value for key, value in vars(module).items() if isinstance(value, Tensor)}
            if plain:
                vars(fresh.get_submodule(name.removesuffix(".base_layer"))).update(plain)
        return fresh

    def _with_weights(self, weights: Mapping[str, Tensor]) -> ModelMixin:
        """Another network of the same architecture around ``weights``; it takes no memory of its own."""
        with torch.device("meta"):
            network = self._architecture.from_config(self.network.config)
        network.load_state_dict(dict(weights), assign=True)
        return network


@contextmanager
def _only_errors() -> Iterator[None]:
    """Inside, diffusers says nothing of text encoders for which a file holds no adapters."""
    from diffusers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
