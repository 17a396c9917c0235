"""Objects from cards and configuration. torch is imported inside, so that a configuration is checked without it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from difalign.build.cards import Found, PipelineCard, RewardCard, fixed_scale, load_reward_card, reward_options
from difalign.build.targets import check_options, resolve_target
from difalign.core.config import DtypeName, RuleName
from difalign.core.config_rewards import RewardConfig
from difalign.core.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from difalign.core.protocols import Process, RewardModel, TrainablePipeline
    from difalign.reward_models.composite import CompositeReward, Term


def build_process(rule: RuleName) -> Process:
    """The process whose steps inject noise by ``rule``."""
    from difalign.process.diffusion import DIFFUSION_RULES
    from difalign.process.flow import FlowProcess, RenoiseProcess
    from difalign.process.rules import FLOW_RULES, STD_RULES

    if rule in DIFFUSION_RULES:
        return DIFFUSION_RULES[rule]
    if rule in FLOW_RULES:
        return FlowProcess(rule=FLOW_RULES[rule])
    return RenoiseProcess(std_rule=STD_RULES[rule])


def build_pipeline(
    found: Found[PipelineCard],
    *,
    process: Process,
    guidance: float,
    device: str | torch.device,
    height: int | None = None,
    width: int | None = None,
    detach_uncond: bool = False,
    dtype: DtypeName | None = None,
) -> TrainablePipeline:
    """Load a pipeline by its card, frozen; height and width in pixels; they and dtype default to the card's.

    Raises:
        ConfigError: if the card's target cannot be imported, has no ``from_pretrained``, does not take the card's
            options, or finds no weights that it can load.
    """
    import torch

    card = found.card
    load = getattr(resolve_target(card.target), "from_pretrained", None)
    if load is None:
        raise ConfigError(f"{found.file}: target = {card.target!r}: has no from_pretrained, so it is no adapter")
    check_options(card.target, load, card.options)
    try:
        return load(
            found.weights(),
            process=process,
            guidance_scale=guidance,
            detach_uncond=detach_uncond,
            height=height if height is not None else card.height,
            width=width if width is not None else card.width,
            dtype=getattr(torch, dtype if dtype is not None else card.dtype),
            device=device,
            revision=card.revision,
            **card.options,
        )
    except (ValueError, OSError) as error:
        raise ConfigError(f"pipeline {card.name!r} could not be loaded: {error}") from error


def build_reward(
    found: Mapping[str, Found[RewardCard]], configs: Mapping[str, RewardConfig], *, device: str | torch.device
) -> CompositeReward:
    """The weighted sum of the rewards in ``configs``, each made by its card's target; equal ones are made once.

    Raises:
        ConfigError: if a target cannot be imported or refuses its options.
    """
    from difalign.reward_models.composite import CompositeReward

    made: dict[str, RewardModel] = {}
    terms = {}
    for name, config in configs.items():
        home = device if config.device is None else config.device
        same = repr((found[name].file, sorted(config.options.items()), str(home), config.offload))
        if same not in made:
            made[same] = build_scorer(found[name], config, home)
        terms[name] = _term(made[same], found[name].card, config, home)
    return CompositeReward(terms)


def _term(reward: RewardModel, card: RewardCard, config: RewardConfig, home: str | torch.device) -> Term:
    from difalign.core.protocols import Movable
    from difalign.reward_models.composite import Gate, Term

    constants = fixed_scale(card, config)
    if config.offload:
        if not isinstance(reward, Movable):
            raise ConfigError(f"reward {card.name!r}: offload = true: it has no weights to move; use offload=false")
        reward.to("cpu")
    return Term(
        reward,
        config.weight,
        mean=None if constants is None else constants.mean,
        std=None if constants is None else constants.std,
        gate=None if config.gate is None else Gate(config.gate.at_least, config.gate.otherwise),
        on_error=card.on_error if config.on_error is None else config.on_error,
        retries=config.retries,
        home=home if config.offload else None,
    )


def build_scorer(found: Found[RewardCard], config: RewardConfig, device: str | torch.device) -> RewardModel:
    """One reward by its card, with the options of ``config``: its raw scores.

    Raises:
        ConfigError: if the target cannot be imported or refuses its options.
    """
    from difalign.reward_models.function import FunctionReward, scores_media

    card, weights = found.card, found.weights()
    make = resolve_target(card.target)
    options: dict[str, Any] = dict(reward_options(card, config))
    if card.on_device:
        options["device"] = device
    others = {"teacher": card.teacher, "reader": card.reader}
    for role, other in others.items():
        if other is not None:
            options[role] = build_scorer(load_reward_card(other), RewardConfig(), device)
    if scores_media(make):
        assert callable(make)
        check_options(card.target, make, options)
        return FunctionReward.made_of(make, options, differentiable=card.differentiable, groupwise=card.groupwise)
    if weights is not None:
        make = getattr(make, "from_pretrained", None)
        stated = {"revision": card.revision, "file": card.file, "sha256": card.sha256}
        options |= {key: value for key, value in stated.items() if value is not None}
    if not callable(make):
        lack = "cannot be called" if weights is None else "has no from_pretrained"
        raise ConfigError(f"{found.file}: target = {card.target!r}: {lack}, so it makes no reward")
    check_options(card.target, make, options)
    try:
        return cast("RewardModel", make(*(() if weights is None else (weights,)), **options))
    except (ValueError, OSError) as error:
        raise ConfigError(f"reward {card.name!r}: {error}") from error
