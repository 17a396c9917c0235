"""A CLIP teacher's own picture tower, reading latents at any noise: a latent student that begins close to its teacher.

Where latents are cut into as many patches as the tower cuts pictures into, a linear map from patches of latents takes
the place of the one from patches of pixels, and is fitted to it on estimates decoded once; what the decoder would have
drawn is then nearly what the tower sees. Every layer normalisation is told the noise (adaLN, arXiv 2212.09748) by a
modulation that is zero at first. A student that begins at random has to learn first what its teacher knows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from difalign.core.types import Source
from difalign.reward_models.latent_network import LEAST_STD, check_sources, cut_patches

if TYPE_CHECKING:
    from difalign.reward_models.clip import ClipReward

_VISION = (  # of a CLIPVisionConfig, what makes the tower
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "hidden_act",
    "layer_norm_eps",
)
_RIDGE = 1e-6  # of the mean square of what is regressed on: keeps the fit finite where a latent never varies


@dataclass(frozen=True, slots=True)
class LatentTowerConfig:
    """The make of a tower, as it stands in the bank."""

    channels: int  # C of one source's latents
    height: int  # of the latents
    width: int
    text_width: int  # D, of the embeddings of pictures and prompts
    patches: int  # a side, the teacher's
    vision: Mapping[str, Any]  # of the teacher's tower
    sources: tuple[Source, ...] = ("guided",)  # stacked along the channels in this order
    hidden: int = 128  # of what is told of the noise
    frequencies: int = 16  # of the noise

    def __post_init__(self) -> None:
        for name in ("channels", "text_width", "patches", "hidden", "frequencies"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: must be at least 1")
        check_sources(self.sources)
        if self.height != self.width or self.height < 1 or self.height % self.patches:
            raise ValueError(
                f"latents of {self.height} x {self.width} cannot be cut as the teacher cuts pictures, into "
                f"{self.patches} x {self.patches} patches: use a student that begins at random (start: random)"
            )
        if missing := [name for name in _VISION if name not in self.vision]:
            raise ValueError(f"vision lacks {', '.join(missing)}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of what is read of one sample: the channels of all sources, height, width."""
        return len(self.sources) * self.channels, self.height, self.width

    def to_json(self) -> dict[str, Any]:
        """Plain values, from which ``from_json`` makes the same."""
        return asdict(self) | {"make": "tower", "sources": list(self.sources), "vision": dict(self.vision)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """What ``to_json`` gave.

        Raises:
            ValueError: if a value is missing, unknown, or none that a tower can have.
        """
        given = {name: value for name, value in values.items() if name != "make"}
        try:
            return cls(**{**given, "sources": tuple(given["sources"])})
        except (TypeError, KeyError) as error:
            raise ValueError(f"is no description of a latent tower ({error})") from error


@final
class LatentTower(nn.Module):
    """Scores [N] of latents [N, k C, h, w] at noise sigma [N] against unit vectors of prompts [N, D].

    The score is ``offset + factor * cosine``, which begins in the unit of the teacher's.
    """

    periods: Tensor  # [F] of sigma
    target_mean: Tensor  # scalar, unit of the loss
    target_std: Tensor  # scalar

    def __init__(self, config: LatentTowerConfig, *, seed: int = 0) -> None:
        from transformers import CLIPVisionConfig, CLIPVisionModel

        super().__init__()
        self.config = config
        side, width = config.height // config.patches, config.vision["hidden_size"]
        vision = CLIPVisionConfig(
            image_size=config.patches, patch_size=1, **{name: config.vision[name] for name in _VISION}
        )
        with torch.random.fork_rng(devices=[]):  # what is drawn here is drawn again below
            whole: Any = CLIPVisionModel(vision)
            tower = getattr(whole, "vision_model", whole)  # transformers 5 has dissolved the wrapper in some releases
            self._side = side
            self.patches = nn.Linear(config.shape[0] * side**2, width)
            self.reading_token = nn.Parameter(tower.embeddings.class_embedding.detach().clone())
            self.places = nn.Parameter(tower.embeddings.position_embedding.weight.detach().clone())
            self.first_norm, self.encoder, self.last_norm = tower.pre_layrnorm, tower.encoder, tower.post_layernorm
            self.projection = nn.Linear(width, config.text_width, bias=False)
            self.noise_condition = nn.Sequential(
                nn.Linear(2 * config.frequencies, config.hidden),
                nn.SiLU(),
                nn.Linear(config.hidden, config.hidden),
                nn.SiLU(),
            )
            self._told: list[Tensor] = []  # the condition of the rows under way, for the modulations
            self._modulate(self)
        self.offset = nn.Parameter(torch.zeros(()))
        self.factor = nn.Parameter(torch.ones(()))
        # Periods of sigma from 4, longer than all noise there is, down to 1/16: levels apart by a hundredth differ.
        self.register_buffer("periods", torch.logspace(2, -4, config.frequencies, base=2.0))
        self.register_buffer("target_mean", torch.zeros(()))
        self.register_buffer("target_std", torch.ones(()))
        self._begin(torch.Generator().manual_seed(seed))

    @classmethod
    @torch.no_grad()
    def of_teacher(
        cls, teacher: ClipReward, *, channels: int, size: int, sources: tuple[Source, ...], seed: int = 0
    ) -> Self:
        """The tower of a teacher, with a patch embedding that is still to be fitted.

        Args:
            teacher: a reward by a CLIPModel.
            channels: C of one source's latents.
            size: their height, which is their width.
            sources: to be read.
            seed: of what is not the teacher's.

        Raises:
            ValueError: if latents of that size cannot be cut as the teacher cuts pictures.
        """
        model: Any = teacher.model
        vision = model.config.vision_config
        config = LatentTowerConfig(
            channels=channels,
            height=size,
            width=size,
            text_width=model.config.projection_dim,
            patches=vision.image_size // vision.patch_size,
            vision={name: getattr(vision, name) for name in _VISION},
            sources=sources,
        )
        tower = cls(config, seed=seed)
        own, theirs = tower.state_dict(), model.vision_model.state_dict()
        for name in own:
            plain = name.replace(".norm.", ".").replace("first_norm.", "pre_layrnorm.")
            plain = plain.replace("last_norm.", "post_layernorm.")
            if plain in theirs:
                own[name].copy_(theirs[plain])
        tower.reading_token.copy_(model.vision_model.embeddings.class_embedding)
        tower.places.copy_(model.vision_model.embeddings.position_embedding.weight)
        tower.projection.weight.copy_(model.visual_projection.weight)
        tower.factor.fill_(teacher.unit)
        return tower

    @torch.no_grad()
    def fit_patches(self, latents: Tensor, wanted: Tensor, *, source: Source) -> float:
        """Fit the patch embedding by least squares, so that latents of ``source`` are read as what they decode to.

        Args:
            latents: of one source, [N, C, h, w].
            wanted: what the teacher's tower makes of each patch of the decoded pictures, [N, P, W].
            source: whose weights are fitted; those of the others become 0.

        Returns:
            The share of the variance of ``wanted`` that is left over.
        """
        read = cut_patches(latents.double(), self._side).flatten(0, 1)
        known = torch.cat([read, torch.ones_like(read[:, :1])], dim=1)
        target = wanted.double().flatten(0, 1).to(known.device)
        square = known.T @ known
        square.diagonal().add_(_RIDGE * float(square.diagonal().mean()))
        solution = torch.linalg.solve(square, known.T @ target)  # [C side^2 + 1, W]
        self.patches.weight.zero_()
        place, wide = self.config.sources.index(source), read.shape[1]
        self.patches.weight[:, place * wide : (place + 1) * wide] = solution[:-1].T.to(self.patches.weight)
        self.patches.bias.copy_(solution[-1])
        return float((known @ solution - target).var() / target.var().clamp_min(LEAST_STD))

    @torch.no_grad()
    def standardise(self, *, latents: object, texts: object, target: Tensor) -> None:  # the teacher's own
        """Take the unit of the loss from the scores that are taught, [N]; latents and prompts are read as they are."""
        self.target_mean.copy_(target.double().mean())
        self.target_std.copy_(target.double().std(correction=0).clamp_min(LEAST_STD))

    def forward(self, latents: Tensor, sigma: Tensor, texts: Tensor) -> Tensor:
        """Scores in the unit of the teacher, [N] float32."""
        dtype = self.patches.weight.dtype
        angles = 2 * math.pi * sigma.float()[:, None] / self.periods.float()
        self._told[:] = [self.noise_condition(torch.cat([angles.cos(), angles.sin()], dim=1).to(dtype))]
        patches = self.patches(cut_patches(latents.to(dtype), self._side))
        first = self.reading_token.expand(patches.shape[0], 1, -1)
        tokens = self.first_norm(torch.cat([first, patches], dim=1) + self.places)
        read = self.last_norm(self.encoder(inputs_embeds=tokens).last_hidden_state[:, 0])
        self._told.clear()
        cosine = (F.normalize(self.projection(read).float(), dim=-1) * texts.float()).sum(dim=-1)
        return self.offset.float() + self.factor.float() * cosine

    @torch.no_grad()
    def _begin(self, source: torch.Generator) -> None:
        """Xavier-uniform layers without bias."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear) and not name.endswith("modulation"):
                nn.init.xavier_uniform_(module.weight, generator=source)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for parameter in (self.places, self.reading_token):
            nn.init.normal_(parameter, std=0.02, generator=source)

    def _modulate(self, module: nn.Module) -> None:
        """Put a modulation around every layer normalisation."""
        for name, child in list(module.named_children()):
            if isinstance(child, nn.LayerNorm):
                setattr(module, name, _Modulated(child, self._told, self.config.hidden))
            else:
                self._modulate(child)


@final
class _Modulated(nn.Module):
    """A layer normalisation whose output is scaled and shifted by what is told of the noise."""

    def __init__(self, norm: nn.LayerNorm, told: list[Tensor], hidden: int) -> None:
        super().__init__()
        self.norm = norm
        self.modulation = nn.Linear(hidden, 2 * norm.normalized_shape[0])
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)
        self._told = told

    def forward(self, tokens: Tensor) -> Tensor:
        told = self.modulation(self._told[0])
        scale, shift = told.reshape(told.shape[0], *([1] * (tokens.dim() - 2)), -1).chunk(2, dim=-1)
        return self.norm(tokens) * (1 + scale) + shift
