"""What an adapter, a process and a reward must offer; everything above speaks only to these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn

from difalign.core.types import Branches, GaussianStep, Metadata, NoiseGrid, Reading, RewardOutput

Modality = Literal["image", "video"]


@runtime_checkable
class Condition(Protocol):
    """Encoded prompts, one row each; rows are gathered, never copied ahead of need."""

    def __len__(self) -> int: ...

    def rows(self, index: Tensor) -> Self:
        """The rows ``index`` ([N] int64), in that order, repeats allowed."""
        ...


@runtime_checkable
class Pipeline(Protocol):
    """A model family behind one face: a text-conditioned denoiser and its latent space."""

    @property
    def modality(self) -> Modality: ...

    @property
    def network(self) -> nn.Module:
        """The denoiser, as trained."""
        ...

    @property
    def device(self) -> torch.device: ...

    @property
    def process(self) -> Process:
        """How a state of this family moves one level; carries the noise rule."""
        ...

    def grid(self, num_steps: int) -> NoiseGrid: ...

    def encode(self, prompts: Sequence[str]) -> Condition:
        """Encode prompts, one row a prompt; repeated prompts are encoded once."""
        ...

    def initial_latents(self, generators: Sequence[torch.Generator]) -> Tensor:
        """One latent a generator, [N, *latent] float32."""
        ...

    def predict(self, x: Tensor, model_time: Tensor, condition: Condition) -> Tensor:
        """The network's output after guidance, [N, *latent] float32; model_time is [N]."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels in [0, 1], [N, C, H, W] or [N, F, C, H, W]; differentiable."""
        ...


@runtime_checkable
class ShowsBranches(Pipeline, Protocol):
    """A pipeline that shows what it predicts without guidance, too, for no further evaluation."""

    def predict_branches(self, x: Tensor, model_time: Tensor, condition: Condition) -> Branches:
        """The network's output with guidance, as ``predict`` gives it, and that of the conditional branch."""
        ...


class Process(Protocol):
    """How a state moves one level. ``step`` is an int or a [N] int64 tensor, one per row."""

    def transition(
        self,
        x: Tensor,
        prediction: Tensor,
        grid: NoiseGrid,
        step: int | Tensor,
        noise_level: float | Tensor,
    ) -> GaussianStep:
        """The distribution of level step + 1 given level step; noise_level is a float or [N]."""
        ...

    def clean_estimate(self, x: Tensor, prediction: Tensor, grid: NoiseGrid, step: int | Tensor) -> Tensor:
        """The network's estimate of x0, [N, *latent] float32."""
        ...

    def noised(self, clean: Tensor, noise: Tensor, grid: NoiseGrid, step: int | Tensor) -> Tensor:
        """x at level ``step`` made from x0 and noise, [N, *latent]."""
        ...


@runtime_checkable
class ReadsPredictions(Process, Protocol):
    """A process of a family whose networks differ in what they predict."""

    def reading(self, prediction_type: str) -> Process:
        """The same process for a network that predicts ``prediction_type``, in diffusers' words."""
        ...


@runtime_checkable
class RewardModel(Protocol):
    """Scores media against prompts; higher is better.

    One that compares the samples of a prompt, such as diversity, has ``groupwise = True`` and is handed whole prompts.
    """

    @property
    def name(self) -> str: ...

    @property
    def differentiable(self) -> bool: ...

    def score(
        self,
        media: Tensor,
        prompts: Sequence[str],
        *,
        metadata: Metadata | None = None,
        sigma: float | None = None,
    ) -> RewardOutput:
        """Score pictures [N, 3, H, W], or clips [N, F, 3, H, W], in [0, 1] against one prompt each.

        Args:
            media: the pixels; a gradient is asked for where they require one.
            prompts: N texts.
            metadata: what the prompt file says beside each prompt; None = nothing.
            sigma: names the noise of an intermediate estimate, None a finished sample.

        Raises:
            ValueError: for what is wrong with the call; what goes wrong with single rows stands in the output.
        """
        ...


class Pending(Protocol):
    """An answer on its way, such as a ``concurrent.futures.Future``."""

    def result(self) -> RewardOutput:
        """The answer; waits for it, and raises what computing it raised."""
        ...


@runtime_checkable
class SubmittedReward(RewardModel, Protocol):
    """A reward that is computed elsewhere, so that sampling can go on meanwhile."""

    def submit(
        self,
        media: Tensor,
        prompts: Sequence[str],
        *,
        metadata: Metadata | None = None,
        sigma: float | None = None,
    ) -> Pending:
        """What ``score`` returns, later."""
        ...


@runtime_checkable
class NetworkReward(RewardModel, Protocol):
    """A reward whose score one network computes, and which can be had with other weights: it can be a teacher.

    Its score has a gradient to those weights that ask for one, and is then not read from what was kept of others.
    """

    @property
    def model(self) -> nn.Module:
        """The network, all of it that has weights."""
        ...

    def with_model(self, model: nn.Module) -> NetworkReward:
        """The same reward by another network of the same make, which is frozen; nothing read so far is kept."""
        ...


@runtime_checkable
class ReadsEstimates(RewardModel, Protocol):
    """A reward that says what it wants to see of unfinished samples; others are shown decoded, guided estimates."""

    def reading(self, sigma: float) -> Reading:
        """What ``score(..., sigma=sigma)`` is handed in place of pictures.

        Raises:
            ValueError: if it does not score at that noise.
        """
        ...


@runtime_checkable
class ReadsTexts(Protocol):
    """What makes vectors of prompts; its weights do not change."""

    def embed_texts(self, prompts: Sequence[str]) -> Tensor:
        """One vector a prompt, [N, D] float32."""
        ...


@runtime_checkable
class Movable(Protocol):
    """A reward whose weights can wait elsewhere while they are not needed."""

    def to(self, device: str | torch.device) -> None:
        """Move all weights."""
        ...


@runtime_checkable
class Tunable(Protocol):
    """A denoiser that can be trained, by adapters or as a whole."""

    def attach_lora(self, *, rank: int, alpha: int, targets: Sequence[str] | None = None, seed: int) -> None:
        """Add trainable adapters that change nothing yet, by default to the layers of the family."""
        ...

    def train_all(self, *, keep_reference: bool = True) -> None:
        """Make every parameter trainable."""
        ...

    def networks(self) -> tuple[nn.Module, ...]:
        """What holds weights: the network under training, then the copy of it that ``reference`` uses, if any."""
        ...

    def trainable_parameters(self) -> list[nn.Parameter]:
        """The parameters that take gradient, in a fixed order."""
        ...

    def reference(self) -> AbstractContextManager[None]:
        """Inside, the pipeline predicts as it did before training."""
        ...

    def save_lora(self, folder: str | Path) -> Path:
        """Write the adapters as diffusers reads them."""
        ...

    def save_network(self, folder: str | Path, *, weights: Mapping[str, Tensor] | None = None) -> None:
        """Write the whole denoiser as diffusers reads it; with these weights, or with its own."""
        ...


@runtime_checkable
class TrainablePipeline(Pipeline, Protocol):
    """A pipeline whose denoiser can be trained."""

    @property
    def tuning(self) -> Tunable:
        """What of the denoiser is trained; shared by all that ``with_guidance`` makes."""
        ...

    def with_guidance(self, guidance_scale: float, *, detach_uncond: bool = False) -> Self:
        """The same weights under another guidance."""
        ...


@runtime_checkable
class Rereadable(Protocol):
    """A pipeline that can show what others will get from the weights that it saves."""

    def reread(self, folder: str | Path) -> Pipeline:
        """The base with what ``save_lora`` or ``save_network`` wrote into ``folder``, read by the model's own library.

        What is not trained is shared with this pipeline.
        """
        ...
