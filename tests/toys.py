"""A Gaussian flow whose velocity is known in closed form, as a pipeline: every identity can be checked exactly.

Data of prompt p is N(offset_p, spread^2 I) in D dimensions. Along x_t = (1-t) x0 + t x1 the velocity is
v = t/V (x-M) - offset - (1-t) spread^2/V (x-M), with M = (1-t) offset and V = (1-t)^2 spread^2 + t^2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor, nn

from difalign.core.gaussian import broadcast_rows, compute_dtype
from difalign.core.protocols import Condition, Modality, Process
from difalign.core.types import GaussianStep, NoiseGrid

CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class ToyCondition:
    """One offset a prompt."""

    offset: Tensor  # [P]

    def __len__(self) -> int:
        return self.offset.shape[0]

    def rows(self, index: Tensor) -> ToyCondition:
        return ToyCondition(self.offset[index])


def flow_velocity(x: Tensor, t: Tensor, offset: Tensor, *, spread: float) -> Tensor:
    """The exact velocity, elementwise; t and offset broadcast against x."""
    variance = (1 - t) ** 2 * spread**2 + t**2
    centred = x - (1 - t) * offset
    return (t - (1 - t) * spread**2) / variance * centred - offset


class ElementwisePolicy(nn.Module):
    """The exact velocity plus a learnable elementwise change: no row depends on its batch, to the last bit."""

    def __init__(self, *, spread: float = 0.7, gain: float = 0.1) -> None:
        super().__init__()
        self.spread = spread
        self.gain = nn.Parameter(torch.tensor(gain))
        self.shift = nn.Parameter(torch.tensor(0.05))

    def forward(self, x: Tensor, t: Tensor, offset: Tensor) -> Tensor:
        t, offset = broadcast_rows(t, x), broadcast_rows(offset, x)
        return flow_velocity(x, t, offset, spread=self.spread) + self.gain * torch.sin(x) + self.shift * t


class PerceptronPolicy(nn.Module):
    """The exact velocity plus a small perceptron with a zero head: starts at the exact flow and can learn."""

    def __init__(self, dimensions: int, *, spread: float = 0.7, width: int = 64) -> None:
        super().__init__()
        self.spread = spread
        self.body = nn.Sequential(nn.Linear(dimensions + 1, width), nn.Tanh())
        self.head = nn.Linear(width, dimensions)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor, t: Tensor, offset: Tensor) -> Tensor:
        change = self.head(self.body(torch.cat([x, t[:, None]], dim=1)))
        return flow_velocity(x, t[:, None], offset[:, None], spread=self.spread) + change


@dataclass(frozen=True, slots=True)
class EulerProcess:
    """Euler's step with Gaussian noise of std ``noise_level * sqrt(-dt)``: the plainest process there is."""

    def transition(
        self, x: Tensor, prediction: Tensor, grid: NoiseGrid, step: int | Tensor, noise_level: float | Tensor
    ) -> GaussianStep:
        x = x.to(compute_dtype(x, prediction))
        step = torch.as_tensor(step, device=x.device).expand(x.shape[0])
        dt = broadcast_rows((grid.sigma.to(x)[step + 1] - grid.sigma.to(x)[step]), x)
        level = broadcast_rows(torch.as_tensor(noise_level, dtype=x.dtype, device=x.device).expand(x.shape[0]), x)
        return GaussianStep(mean=x + prediction * dt, std=level * (-dt).sqrt())

    def clean_estimate(self, x: Tensor, prediction: Tensor, grid: NoiseGrid, step: int | Tensor) -> Tensor:
        sigma = grid.sigma.to(x)[torch.as_tensor(step).expand(x.shape[0])]
        return x - broadcast_rows(sigma, x) * prediction

    def noised(self, clean: Tensor, noise: Tensor, grid: NoiseGrid, step: int | Tensor) -> Tensor:
        sigma = broadcast_rows(grid.sigma.to(clean)[torch.as_tensor(step).expand(clean.shape[0])], clean)
        return (1 - sigma) * clean + sigma * noise


@dataclass
class ToyPipeline:
    """A pipeline over a policy, which counts what the network is asked."""

    network: nn.Module
    process: Process = field(default_factory=EulerProcess)
    latent: tuple[int, ...] = (8,)
    shift: float = 3.0
    device: torch.device = CPU
    modality: Modality = "image"
    batches: list[int] = field(default_factory=list)  # rows of every forward
    times: list[float] = field(default_factory=list)  # model time of every row

    def grid(self, num_steps: int) -> NoiseGrid:
        t = torch.linspace(1.0, 0.0, num_steps + 1, dtype=torch.float64)
        sigma = (self.shift * t / (1 + (self.shift - 1) * t)).float()
        return NoiseGrid(alpha=1 - sigma, sigma=sigma, model_time=sigma[:-1])

    def encode(self, prompts: Sequence[str]) -> ToyCondition:
        return ToyCondition(torch.tensor([float(prompt) for prompt in prompts]))

    def initial_latents(self, generators: Sequence[torch.Generator]) -> Tensor:
        return torch.stack([torch.randn(self.latent, generator=source) for source in generators])

    def predict(self, x: Tensor, model_time: Tensor, condition: Condition) -> Tensor:
        assert isinstance(condition, ToyCondition)
        assert x.shape[0] == model_time.shape[0] == len(condition)
        self.batches.append(x.shape[0])
        self.times.extend(model_time.tolist())
        return self.network(x, model_time.to(x), condition.offset.to(x))

    def decode(self, latents: Tensor) -> Tensor:
        return latents


@dataclass
class TunableToy(ToyPipeline):
    """A toy whose whole network is trained, and which is its own tuning."""

    @property
    def tuning(self) -> Self:
        return self

    def attach_lora(self, *, rank: int, alpha: int, targets: Sequence[str] | None = None, seed: int) -> None:
        raise AssertionError("a toy has no adapters")

    def train_all(self, *, keep_reference: bool = True) -> None:
        raise AssertionError("a toy is trained from the start")

    def networks(self) -> tuple[nn.Module, ...]:
        return (self.network,)

    def trainable_parameters(self) -> list[nn.Parameter]:
        return list(self.network.parameters())

    def with_guidance(self, guidance_scale: float, *, detach_uncond: bool = False) -> Self:
        return self


def elementwise_pipeline(latent: tuple[int, ...] = (8,)) -> ToyPipeline:
    """A pipeline whose rows are exactly independent of their batch."""
    return ToyPipeline(network=ElementwisePolicy(), latent=latent)
