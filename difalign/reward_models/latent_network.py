"""A small transformer that scores latents at any noise against a prompt: the network of latent students.

Patches of the latents, a token of the prompt and one to read from go through blocks whose normalisations are modulated
by the noise and the prompt (adaLN-zero of DiT, arXiv 2212.09748). A reward that is taught to read latents needs no
decoding, which at high resolution costs as much as a step of the denoiser.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from difalign.core.types import Source

LEAST_STD = 1e-6  # of what is standardised; below it, nothing is divided

# What is read at the end, from tokens [N, 1 + K + P, W]: the reading token, K of the prompt, P patches.
Readout = Callable[[Tensor, int], Tensor]  # (tokens, K) -> [N, W]

READOUTS: Mapping[str, Readout] = {
    "token": lambda tokens, _: tokens[:, 0],
    "mean": lambda tokens, texts: tokens[:, 1 + texts :].mean(dim=1),
}


@dataclass(frozen=True, slots=True)
class LatentNetworkConfig:
    """The make of a network, as it stands in the bank."""

    channels: int  # C of one source's latents
    height: int  # of the latents
    width: int
    text_width: int  # D of the reader's vectors
    sources: tuple[Source, ...] = ("guided",)  # stacked along the channels in this order
    patch: int = 2  # DiT's (arXiv 2212.09748, section 4)
    hidden: int = 128
    depth: int = 4
    heads: int = 4
    mlp_ratio: int = 4  # DiT's
    text_tokens: int = 1
    frequencies: int = 16  # of the noise
    readout: str = "token"

    def __post_init__(self) -> None:
        counts = (
            "channels",
            "text_width",
            "patch",
            "hidden",
            "depth",
            "heads",
            "mlp_ratio",
            "text_tokens",
            "frequencies",
        )
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: must be at least 1")
        for name in ("height", "width"):
            if getattr(self, name) < 1 or getattr(self, name) % self.patch:
                raise ValueError(f"{name} = {getattr(self, name)}: give a multiple of patch = {self.patch}")
        if self.hidden % self.heads:
            raise ValueError(f"hidden = {self.hidden}: must be a multiple of heads = {self.heads}")
        check_sources(self.sources)
        if self.readout not in READOUTS:
            raise ValueError(f"readout = {self.readout!r}: use one of: {', '.join(READOUTS)}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of what is read of one sample: the channels of all sources, height, width."""
        return len(self.sources) * self.channels, self.height, self.width

    def to_json(self) -> dict[str, Any]:
        """Plain values, from which ``from_json`` makes the same."""
        return asdict(self) | {"sources": list(self.sources)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """What ``to_json`` gave.

        Raises:
            ValueError: if a value is missing, unknown, or none that a network can have.
        """
        try:
            return cls(**{**values, "sources": tuple(values["sources"])})
        except (TypeError, KeyError) as error:
            raise ValueError(f"is no description of a latent network ({error})") from error


@final
class LatentNetwork(nn.Module):
    """Scores [N] of latents [N, k C, h, w] at noise sigma [N] against vectors of prompts [N, D].

    The score is ``mean + std * read``, with the mean and the spread of the scores that were taught; latents are
    standardised by channel and vectors of prompts by element, all by constants that are kept with the weights. A new
    network says the mean, whatever it is shown. Weights may be of lower precision: what goes in and comes out is
    float32.
    """

    periods: Tensor  # [F] of sigma
    latent_mean: Tensor  # [k C, 1, 1]
    latent_std: Tensor  # [k C, 1, 1]
    text_mean: Tensor  # [D]
    text_std: Tensor  # [D]
    target_mean: Tensor  # scalar
    target_std: Tensor  # scalar

    def __init__(self, config: LatentNetworkConfig, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        channels, hidden = config.shape[0], config.hidden
        patches = (config.height // config.patch) * (config.width // config.patch)
        self._readout = READOUTS[config.readout]
        with torch.random.fork_rng(devices=[]):  # layers draw as they are made, ``_begin`` what stays
            self.patches = nn.Linear(channels * config.patch**2, hidden)
            self.places = nn.Parameter(torch.empty(patches, hidden))
            self.reading_token = nn.Parameter(torch.empty(hidden))
            self.text_tokens = nn.Linear(config.text_width, config.text_tokens * hidden)
            self.text_condition = _two_layers(config.text_width, hidden)
            self.noise_condition = _two_layers(2 * config.frequencies, hidden)
            blocks = [_Block(config) for _ in range(config.depth)]
            self.blocks = nn.ModuleList(blocks)
            self.last_modulation = nn.Linear(hidden, 2 * hidden)
            self.score = nn.Linear(hidden, 1)
        # Periods of sigma from 4, longer than all noise there is, down to 1/16: levels apart by a hundredth differ.
        self.register_buffer("periods", torch.logspace(math.log2(4), math.log2(1 / 16), config.frequencies, base=2.0))
        self.register_buffer("latent_mean", torch.zeros(channels, 1, 1))
        self.register_buffer("latent_std", torch.ones(channels, 1, 1))
        self.register_buffer("text_mean", torch.zeros(config.text_width))
        self.register_buffer("text_std", torch.ones(config.text_width))
        self.register_buffer("target_mean", torch.zeros(()))
        self.register_buffer("target_std", torch.ones(()))
        modulations = [self.last_modulation, *(block.modulation for block in blocks)]
        self._begin(torch.Generator().manual_seed(seed), zero=[*modulations, self.score])

    @torch.no_grad()
    def standardise(self, *, latents: tuple[Tensor, Tensor], texts: tuple[Tensor, Tensor], target: Tensor) -> None:
        """Take the constants of the training data.

        Args:
            latents: mean and standard deviation of every channel of all sources, [k C] each.
            texts: mean and standard deviation of the prompts' vectors, [D] each.
            target: the scores that are taught, [N].
        """
        self.latent_mean.copy_(latents[0][:, None, None])
        self.latent_std.copy_(_divisor(latents[1])[:, None, None])
        self.text_mean.copy_(texts[0])
        self.text_std.copy_(_divisor(texts[1]))
        self.target_mean.copy_(target.double().mean())
        self.target_std.copy_(_divisor(target.double().std(correction=0)))

    def forward(self, latents: Tensor, sigma: Tensor, texts: Tensor) -> Tensor:
        """Scores in the unit of the teacher, [N] float32."""
        dtype = self.patches.weight.dtype
        read = ((latents.float() - self.latent_mean.float()) / self.latent_std.float()).to(dtype)
        said = ((texts.float() - self.text_mean.float()) / self.text_std.float()).to(dtype)
        angles = 2 * math.pi * sigma.float()[:, None] / self.periods.float()
        noise = self.noise_condition(torch.cat([angles.cos(), angles.sin()], dim=1).to(dtype))
        condition = F.silu(noise + self.text_condition(said))
        patches = self.patches(cut_patches(read, self.config.patch)) + self.places
        first = self.reading_token.expand(patches.shape[0], 1, -1)
        prompt = self.text_tokens(said).unflatten(1, (self.config.text_tokens, self.config.hidden))
        tokens = torch.cat([first, prompt, patches], dim=1)
        for block in self.blocks:
            tokens = block(tokens, condition)
        shift, scale = self.last_modulation(condition).chunk(2, dim=1)
        out = _normalised(self._readout(tokens, self.config.text_tokens)) * (1 + scale) + shift
        return self.target_mean.float() + self.target_std.float() * self.score(out).squeeze(1).float()

    @torch.no_grad()
    def _begin(self, source: torch.Generator, *, zero: Sequence[nn.Linear]) -> None:
        """DiT's initial weights: Xavier-uniform layers, no bias, and modulations and the score at zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight, generator=source)
                nn.init.zeros_(module.bias)
        for parameter in (self.places, self.reading_token):
            nn.init.normal_(parameter, std=0.02, generator=source)
        for layer in zero:
            nn.init.zeros_(layer.weight)


@final
class _Block(nn.Module):
    """Attention and a feed-forward layer, each behind a normalisation that the condition shifts, scales and gates."""

    def __init__(self, config: LatentNetworkConfig) -> None:
        super().__init__()
        hidden = config.hidden
        self._heads = config.heads
        self.modulation = nn.Linear(hidden, 6 * hidden)
        self.queries_keys_values = nn.Linear(hidden, 3 * hidden)
        self.attended = nn.Linear(hidden, hidden)
        self.wide = nn.Linear(hidden, config.mlp_ratio * hidden)
        self.narrow = nn.Linear(config.mlp_ratio * hidden, hidden)

    def forward(self, tokens: Tensor, condition: Tensor) -> Tensor:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(condition)[:, None].chunk(6, dim=2)
        tokens = tokens + gate_a * self._attend(_normalised(tokens) * (1 + scale_a) + shift_a)
        wide = F.gelu(self.wide(_normalised(tokens) * (1 + scale_m) + shift_m), approximate="tanh")
        return tokens + gate_m * self.narrow(wide)

    def _attend(self, tokens: Tensor) -> Tensor:
        split = self.queries_keys_values(tokens).unflatten(2, (3, self._heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(split[0], split[1], split[2])
        return self.attended(mixed.transpose(1, 2).flatten(2))


def _divisor(std: Tensor) -> Tensor:
    """1 in the place of a spread of nothing, so that what has never varied is not blown up where it does."""
    return torch.where(std > LEAST_STD, std, 1.0)


def _two_layers(width: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, hidden))


def _normalised(tokens: Tensor) -> Tensor:
    return F.layer_norm(tokens, tokens.shape[-1:], eps=1e-6)


def check_sources(sources: Sequence[Source]) -> None:
    """Refuse sources that cannot be stacked.

    Raises:
        ValueError: if there is none, or one is named twice.
    """
    if not sources or len(set(sources)) != len(sources):
        raise ValueError(f"sources = {tuple(sources)}: name at least one, and each once")


def cut_patches(latents: Tensor, side: int) -> Tensor:
    """Squares of the latents, row by row, [N, P, C side^2]."""
    cut = latents.unflatten(3, (-1, side)).unflatten(2, (-1, side))  # [N, C, rows, side, columns, side]
    return cut.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
