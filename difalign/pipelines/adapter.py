"""What the adapters of all families have in common: one face on a diffusers pipeline whose denoiser is trained."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from difalign.core.protocols import Condition, Modality, Process
from difalign.core.types import Branches
from difalign.pipelines.guidance import Guides
from difalign.pipelines.latents import LatentShape, draw_latents
from difalign.pipelines.prompt_encoder import PromptEncoder
from difalign.pipelines.text_condition import TextCondition
from difalign.pipelines.tuning import Tuning


class Adapter(ABC):
    """A diffusers pipeline, the process that moves its states, guidance, and what of its denoiser is trained.

    Siblings, which the ``with_`` methods return, share modules, adapters and prompt cache.

    Args:
        pipe: the diffusers pipeline; its network, autoencoder and text encoders are frozen, and its autoencoder made
            float32.
        process: how a state moves one level.
        guidance: how the network is guided.
        tuning: holds the denoiser.
        prompts: holds the text encoders.
        latent_shape: [C, h, w] of one latent.
    """

    def __init__(
        self,
        pipe: Any,
        *,
        process: Process,
        guidance: Guides,
        tuning: Tuning,
        prompts: PromptEncoder,
        latent_shape: LatentShape,
    ) -> None:
        self._pipe = pipe
        self._process = process
        self._guidance = guidance
        self._tuning = tuning
        self._prompts = prompts
        self._latent_shape = latent_shape
        self._forward: nn.Module = tuning.network  # what predicts: the network itself, or a wrapper of it
        if pipe.vae.dtype != torch.float32:
            pipe.vae.to(torch.float32)  # half precision overflows in its decoder
        for module in (tuning.network, pipe.vae, *prompts.modules):
            module.requires_grad_(False).eval()

    @property
    def modality(self) -> Modality:
        """Images."""
        return "image"

    @property
    def network(self) -> nn.Module:
        """The denoiser, as trained."""
        return self._tuning.network

    @property
    def tuning(self) -> Tuning:
        """What of the network is trained; shared by all siblings."""
        return self._tuning

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    @property
    def process(self) -> Process:
        """How a state of this family moves one level."""
        return self._process

    @property
    def guidance_scale(self) -> float:
        """w in u + w (c - u), or what a network that takes its guidance as an input is given."""
        return self._guidance.scale

    @property
    def diffusers_pipeline(self) -> Any:
        """The wrapped pipeline, sharing all modules; Any, since its annotations refuse much of what it takes."""
        return self._pipe

    @property
    def latent_shape(self) -> LatentShape:
        """[C, h, w] of one latent."""
        return self._latent_shape

    def initial_latents(self, generators: Sequence[torch.Generator]) -> Tensor:
        """One latent a generator, [N, C, h, w] float32; see ``latents.draw_latents``."""
        return draw_latents(generators, self._latent_shape, self.device)

    def encode(self, prompts: Sequence[str]) -> TextCondition:
        """Encode prompts, one row a prompt; a text that was ever seen is not encoded again.

        Raises:
            ValueError: if there are no prompts, or a bare string is passed.
        """
        return self._prompts.encode(prompts, self.device)

    def predict(self, x: Tensor, model_time: Tensor, condition: Condition) -> Tensor:
        """The network's output after guidance, [N, C, h, w] float32; see ``predict_branches``."""
        return self.predict_branches(x, model_time, condition).guided

    @abstractmethod
    def predict_branches(self, x: Tensor, model_time: Tensor, condition: Condition) -> Branches:
        """What the network predicts, with guidance and without; each family's own."""

    def clear_prompt_cache(self) -> None:
        """Forget all prompt embeddings; conditions handed out stay valid."""
        self._prompts.clear()

    def move_text_encoders(self, device: str | torch.device) -> None:
        """Put the text encoders on a device of their own, such as "cpu" to free memory; encoding goes on there."""
        self._prompts.move(device)

    def with_guidance(self, guidance_scale: float, *, detach_uncond: bool = False) -> Self:
        """The same modules, adapters and prompt cache under another guidance."""
        sibling = copy.copy(self)
        sibling._guidance = self._guidance.at(guidance_scale, detach_uncond=detach_uncond)
        return sibling

    def with_network(self, network: nn.Module) -> Self:
        """The same pipeline, calling ``network``: this one's, wrapped for distribution or compiled."""
        sibling = copy.copy(self)
        sibling._forward = network
        return sibling

    def reread(self, folder: str | Path) -> Self:
        """The policy before training with what ``save_lora`` or ``save_network`` wrote, read by diffusers."""
        sibling = copy.copy(self)
        sibling._pipe, sibling._tuning = self._tuning.reread(self._pipe, folder)
        sibling._forward = sibling._tuning.network
        return sibling
