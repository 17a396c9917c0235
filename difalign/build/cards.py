"""Cards: what a model or a reward is called, which class speaks for it, where its weights are, how it is used."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Generic, Literal, Self, TypeVar

from pydantic import Field, model_validator

from difalign.build.definitions import definition_roots, find_definition, is_path, known_names
from difalign.build.entry_points import entry_point_card
from difalign.core.config import DtypeName, Family
from difalign.core.config_errors import TARGET_PATTERN, checked, did_you_mean
from difalign.core.config_fields import Count, NonNegative, Number, Positive, Section
from difalign.core.config_rewards import OnError, OptionValue, RewardConfig
from difalign.core.config_yaml import read_yaml
from difalign.core.errors import ConfigError
from difalign.core.user_path import user_path

# How a guidance scale acts: by a second, unconditional branch; as an input of a distilled network; or not at all.
GuidanceKind = Literal["classifier_free", "embedded", "none"]
Target = Annotated[str, Field(pattern=TARGET_PATTERN)]

PIPELINES = "pipelines"
REWARDS = "reward_models"


@dataclass(frozen=True, slots=True)
class _Adapter:
    """What speaks for the diffusers folders of one class."""

    target: str
    family: Family = "flow"
    guidance_kind: GuidanceKind = "classifier_free"


# Adapters of diffusers folders that come without a card, by the class that their model_index.json names.
_ADAPTERS: dict[str, _Adapter] = {
    "StableDiffusion3Pipeline": _Adapter("difalign.pipelines.sd3:SD3Pipeline"),
    "FluxPipeline": _Adapter("difalign.pipelines.flux:FLUX", guidance_kind="embedded"),
    "QwenImagePipeline": _Adapter("difalign.pipelines.qwen_image:QWEN_IMAGE"),
    "StableDiffusionPipeline": _Adapter("difalign.pipelines.stable_diffusion:STABLE_DIFFUSION", "diffusion"),
    "StableDiffusionXLPipeline": _Adapter("difalign.pipelines.sdxl:SDXL", "diffusion"),
}


class Card(Section):
    """What every card says."""

    name: str
    summary: str
    target: Target  # "package.module:Class"; the user's own modules work as well
    licence: str
    path: str | None = None  # a folder of weights, relative to the card
    hub_id: str | None = None  # or a repository of the model hub
    revision: str | None = None  # of the hub repository
    options: dict[str, OptionValue] = Field(default_factory=dict)  # keyword arguments of the target

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.path is not None and self.hub_id is not None:
            raise ValueError("path, hub_id: give exactly one of them, not both")
        return self


class PipelineCard(Card):
    """A generative model; ``target.from_pretrained`` loads it."""

    family: Family = "flow"  # whether the process handed to the target is a flow's or a diffusion model's
    dtype: DtypeName = "float32"
    height: Count | None = None  # pixels; null = what the network was trained at
    width: Count | None = None
    size_multiple: Count = 1  # height and width must be multiples of this
    # Of the latent space, for counting ahead of a download; files on the disk say more and are asked first.
    latent_channels: Count | None = None
    latent_scale: Count | None = None  # pixels, along a side, that one latent element stands for
    steps: Count = 28
    guidance: NonNegative = 1.0
    guidance_kind: GuidanceKind = "classifier_free"
    lora_targets: Annotated[tuple[str, ...], Field(strict=False)] = ()  # module suffixes; empty = the adapter's own
    parameters: Annotated[int, Field(ge=1)] | None = None  # of the denoiser

    @model_validator(mode="after")
    def _has_source(self) -> Self:
        if self.path is None and self.hub_id is None:
            raise ValueError("path, hub_id: give exactly one of them")
        return self


class FixedScale(Section):
    """``(score - mean) / std``."""

    mean: Number = 0.0
    std: Positive = 1.0


class ScoreStatistics(Section):
    """What scores have been measured to be."""

    mean: Number
    std: Positive | None = None
    within_prompt_std: Positive  # between samples of one prompt: what a comparison of samples is made of
    low: Number | None = None
    high: Number | None = None
    source: str  # of which samples, and who measured


class RewardCard(Card):
    """A reward; ``options`` lists every option with its default.

    ``target(**options)`` makes it, or ``target.from_pretrained(weights, **options)`` where the card names weights.
    """

    on_device: bool = False  # the target takes ``device`` as well
    teacher: str | None = None  # the name or path of another reward's card, which the target takes as ``teacher``
    reader: str | None = None  # likewise, taken as ``reader``: what makes vectors of prompts for it
    file: str | None = None  # of the folder or repository, if the weights are a single checkpoint
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None  # of that file
    differentiable: bool = False  # whether a gradient reaches the pixels
    groupwise: bool = False  # whether a sample is scored among the others of its prompt
    on_error: OnError = "raise"  # what becomes of samples without a score, unless the run says otherwise
    needs: Annotated[tuple[str, ...], Field(strict=False)] = ()  # what a prompt file must say beside every prompt
    requires: Annotated[tuple[str, ...], Field(strict=False)] = ()  # modules beyond the core's, of the extra `rewards`
    # The least and the greatest score that can be; null = without end.
    bounds: Annotated[tuple[Number | None, Number | None], Field(strict=False)] | None = None
    statistics: ScoreStatistics | None = None  # measured; the default of rewards.NAME.scale.kind=fixed
    scales: dict[str, FixedScale] = Field(default_factory=dict)  # the constants of published code, by its name
    # A function of one prompt and, if it has a second argument ``metadata``, of what the prompt file says beside it;
    # cheap to import. It raises ValueError for a prompt that the reward cannot score; what it returns may have a
    # ``kind``, the category under which the prompt is reported.
    prompt_reader: Target | None = None


_C = TypeVar("_C", bound=Card)


def wrapped_class(target: str) -> str | None:
    """The diffusers class that an adapter of this package wraps; None for an adapter of the user's own."""
    return next((name for name, adapter in _ADAPTERS.items() if adapter.target == target), None)


@dataclass(frozen=True, slots=True)
class Found(Generic[_C]):
    """A card and the file it was read from."""

    card: _C
    file: Path

    def weights(self) -> str | Path | None:
        """Where the weights are: a local folder, or an id of the model hub; None for a reward that has none."""
        return self.file.parent / self.card.path if self.card.path is not None else self.card.hub_id


def load_pipeline_card(name_or_path: str, roots: Sequence[Path] | None = None) -> Found[PipelineCard]:
    """The card of a pipeline: by name, by the path of a card, or made up for a diffusers folder.

    Raises:
        ConfigError: if nothing of that name is known, the card is malformed, or the folder is of no known family.
    """
    folder = user_path(name_or_path)
    if folder.is_dir() and (folder / "model_index.json").is_file():
        return next((found for found in list_pipelines(roots) if _is_of(found, folder)), None) or _card_of_folder(
            folder
        )
    if folder.is_dir() and is_path(name_or_path):
        raise ConfigError(
            f"{folder}: is a folder without model_index.json, so no diffusers pipeline; save it with save_pretrained, "
            "or give the path of a card"
        )
    return _load(PipelineCard, PIPELINES, name_or_path, roots)


def load_reward_card(name_or_path: str, roots: Sequence[Path] | None = None) -> Found[RewardCard]:
    """The card of a reward: by name, by the path of a card, or by the name that another package declares.

    Raises:
        ConfigError: if nothing of that name is known or the card is malformed.
    """
    if is_path(name_or_path) or name_or_path.replace("_", "-") in known_names(REWARDS, roots):
        return _load(RewardCard, REWARDS, name_or_path, roots)
    declared = entry_point_card(name_or_path)
    if isinstance(declared, Path):
        return _load(RewardCard, REWARDS, str(declared), roots)
    if declared is not None:
        card = checked(RewardCard, declared, source=f"entry point {name_or_path!r}")
        return Found(card, Path(f"{name_or_path}.yaml"))
    return _load(RewardCard, REWARDS, name_or_path, roots)


def list_pipelines(roots: Sequence[Path] | None = None) -> tuple[Found[PipelineCard], ...]:
    """Every pipeline card that can be found by name."""
    return tuple(load_pipeline_card(name, roots) for name in known_names(PIPELINES, roots))


def list_rewards(roots: Sequence[Path] | None = None) -> tuple[Found[RewardCard], ...]:
    """Every reward card that can be found by name."""
    return tuple(load_reward_card(name, roots) for name in known_names(REWARDS, roots))


def reward_options(card: RewardCard, config: RewardConfig) -> dict[str, OptionValue]:
    """The card's options with the configuration's laid over them.

    Raises:
        ConfigError: if an option is unknown to the card or of another type than its default.
    """
    for name, value in config.options.items():
        if name not in card.options:
            raise ConfigError(f"options.{name}: unknown option; {did_you_mean(name, sorted(card.options))}")
        default = card.options[name]
        if default is not None and not _same_type(value, default):
            raise ConfigError(f"options.{name} = {value!r}: must be of the type of its default, {default!r}")
    return {**card.options, **config.options}


def fixed_scale(card: RewardCard, config: RewardConfig) -> FixedScale | None:
    """The constants of ``scale.kind: fixed``: by hand, the card's of that name, or what its scores were measured to be.

    Raises:
        ConfigError: if the card has none, or none of that name.
    """
    scale = config.scale
    if scale.kind != "fixed":
        return None
    if scale.mean is not None and scale.std is not None:
        return FixedScale(mean=scale.mean, std=scale.std)
    if scale.constants is not None:
        if scale.constants not in card.scales:
            known = did_you_mean(scale.constants, sorted(card.scales)) if card.scales else "the card has none"
            raise ConfigError(f"scale.constants = {scale.constants!r}: unknown; {known}, or give mean and std")
        return card.scales[scale.constants]
    if card.statistics is None:
        raise ConfigError(
            f"scale.kind = 'fixed': {card.name} has no measured statistics; give scale.mean and scale.std, "
            "or use another kind"
        )
    return FixedScale(mean=card.statistics.mean, std=card.statistics.within_prompt_std)


def _same_type(value: OptionValue, default: OptionValue) -> bool:
    if isinstance(default, float):
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return type(value) is type(default)


def _load(model: type[_C], folder: str, name: str, roots: Sequence[Path] | None) -> Found[_C]:
    roots = definition_roots() if roots is None else roots
    file = find_definition(folder, name, roots)
    content = read_yaml(file)
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ConfigError(f"{file}: must hold `key: value` lines; required: name, summary, target, licence")
    card = checked(model, content, source=str(file))
    if any(file.parent == root / folder for root in roots) and card.name != file.stem.replace("_", "-"):
        raise ConfigError(f"{file}: name = {card.name!r}: must be the file's own, {file.stem.replace('_', '-')!r}")
    return Found(card, file)


def _is_of(found: Found[PipelineCard], folder: Path) -> bool:
    weights = found.weights()
    return isinstance(weights, Path) and weights.resolve() == folder.resolve()


def _card_of_folder(folder: Path) -> Found[PipelineCard]:
    index = folder / "model_index.json"
    try:
        family = json.loads(index.read_text(encoding="utf-8")).get("_class_name")
    except (ValueError, AttributeError):
        raise ConfigError(f"{index}: is not the index of a diffusers pipeline; save it with save_pretrained") from None
    if family not in _ADAPTERS:
        raise ConfigError(
            f"{folder}: holds a {family}, which has no adapter; known: {', '.join(_ADAPTERS)}; "
            "or give the path of a card that names an adapter as its target"
        )
    adapter = _ADAPTERS[family]
    card = PipelineCard(
        name=folder.name,
        summary=f"A {family} folder without a card",
        target=adapter.target,
        licence="unknown",
        family=adapter.family,
        guidance_kind=adapter.guidance_kind,
        path=folder.name,
    )
    return Found(card, folder.resolve().parent / f"{folder.name}.yaml")
