"""What the adapters of all families have in common: one face on a diffusers pipeline whose denoiser is trained."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from difalign.core.protocols import Modality, Process
from difalign.pipelines.guidance import Guidance
from difalign.pipelines.tuning import Tuning


class Adapter:
    """A diffusers pipeline, the process that moves its states, guidance, and what of its denoiser is trained.

    Siblings, which the ``with_`` methods return, share modules, adapters and prompt cache.

    Args:
        pipe: the diffusers pipeline.
        process: how a state moves one level.
        guidance: how conditional and unconditional predictions become one.
        tuning: holds the denoiser.
    """

    def __init__(self, pipe: Any, *, process: Process, guidance: Guidance, tuning: Tuning) -> None:
        self._pipe = pipe
        self._process = process
        self._guidance = guidance
        self._tuning = tuning
        self._forward: nn.Module = tuning.network  # what predicts: the network itself, or a wrapper of it

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
        """w in u + w (c - u)."""
        return self._guidance.scale

    @property
    def diffusers_pipeline(self) -> Any:
        """The wrapped pipeline, sharing all modules; Any, since its annotations refuse much of what it takes."""
        return self._pipe

    def with_guidance(self, guidance_scale: float, *, detach_uncond: bool = False) -> Self:
        """The same modules, adapters and prompt cache under another guidance."""
        sibling = copy.copy(self)
        sibling._guidance = Guidance(guidance_scale, detach_uncond)
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
